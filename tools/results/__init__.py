"""The reproductions: raw tables under docs/results, and the page made of them."""
