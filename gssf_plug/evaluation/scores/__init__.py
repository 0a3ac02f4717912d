"""What ranks are counted from: scores of features, or given ones, each with bounds on how far they may be off."""

from gssf_plug.evaluation.scores.features import FeatureScores, counted_scores
from gssf_plug.evaluation.scores.given import GivenScores
from gssf_plug.evaluation.scores.protocols import ScoredPart, ScoredQueries, Scores

__all__ = ["FeatureScores", "GivenScores", "ScoredPart", "ScoredQueries", "Scores", "counted_scores"]
