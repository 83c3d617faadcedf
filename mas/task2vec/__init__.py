"""Task2Vec: tasks as vectors, distances between them, and what the distances are held against.

Best read in this order:

    embedding.py     TaskEmbedding: what an embedding holds; save and load
    probing.py       embed: from a probe network and labelled batches to an embedding
    head.py          the head fitted to a task; filters.py: the filters of a probe
    variational.py   the estimator that puts noise on the weights
    distances.py     distances between embeddings, and matrices of them
    streams.py       complexity, heterogeneity and orders of a stream
    selection.py     which expert to start from, and how good that choice was
    transfer.py      what fine-tuning really costs
"""

from mas.task2vec.distances import ALPHA as ALPHA
from mas.task2vec.distances import DISTANCES as DISTANCES
from mas.task2vec.distances import asymmetric_distance as asymmetric_distance
from mas.task2vec.distances import correlation_distance as correlation_distance
from mas.task2vec.distances import cosine_distance as cosine_distance
from mas.task2vec.distances import distance_matrix as distance_matrix
from mas.task2vec.distances import jensen_shannon as jensen_shannon
from mas.task2vec.distances import kl_divergence as kl_divergence
from mas.task2vec.distances import normalized_cosine_distance as normalized_cosine_distance
from mas.task2vec.embedding import BETA as BETA
from mas.task2vec.embedding import TaskEmbedding as TaskEmbedding
from mas.task2vec.probing import ESTIMATORS as ESTIMATORS
from mas.task2vec.probing import embed as embed
from mas.task2vec.selection import SelectionScore as SelectionScore
from mas.task2vec.selection import rank_experts as rank_experts
from mas.task2vec.selection import selection_score as selection_score
from mas.task2vec.streams import complexity as complexity
from mas.task2vec.streams import curriculum_order as curriculum_order
from mas.task2vec.streams import least_typical_order as least_typical_order
from mas.task2vec.streams import stream_complexity as stream_complexity
from mas.task2vec.streams import stream_heterogeneity as stream_heterogeneity
from mas.task2vec.transfer import Reachability as Reachability
from mas.task2vec.transfer import head_accuracy as head_accuracy
from mas.task2vec.transfer import reachability as reachability
