from mas.experiments.report.sections import Headline, Page, Section, Table
def page(c,t): return Page("x","",[])
def headline(c,t): return Headline("x",Table(["a"],[["b"]]))
