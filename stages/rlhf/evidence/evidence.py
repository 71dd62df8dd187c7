"""What an answer is worth by what was read: the passages shown with its question, and the corpus.

Without passages it is the corpus check. With passages, a refusal is worth 0; an answer is worth 1
if the passage that it cites states its claim, -1 if not. Where a corpus is checked, too, it is the
mean of that and of the corpus check.
"""

from dataclasses import dataclass

from stages.rlhf.chat import cited, declines, without_citations
from stages.rlhf.evidence.corpus_check import CorpusCheck
from stages.rlhf.retrieval.support import Support


@dataclass(frozen=True)
class Evidence:
    """Either may be missing: no corpus, no passages."""

    corpus: CorpusCheck | None
    support: Support | None = None

    def __call__(self, question: str, passages: tuple[str, ...], answer: str) -> float:
        """In [-1, 1]; 0 where there is nothing to check by."""
        if not passages:
            return self.corpus(question, answer) if self.corpus else 0.0
        if declines(answer):
            return 0.0
        statement = without_citations(answer)
        if self.support is None:
            return self.corpus(question, statement) if self.corpus else 0.0
        number = cited(answer)
        grounded = -1.0
        if number is not None and 1 <= number <= len(passages):
            stance = self.support.stance(passages[number - 1], question, statement)
            grounded = 1.0 if stance == "supports" else -1.0
        if self.corpus is None:
            return grounded
        return (grounded + self.corpus(question, statement)) / 2
