"""What an answer is worth by what was read: the passages shown with its question, or the corpus.

Without passages it is the corpus check. With passages, a refusal is worth 0, and an answer that no
clause of the passage that it cites states is worth -1, though the corpus may have it: were it worth
more, to answer from memory would be as good as to decline. Of an answer that is stated, the worth
is 1, or where a corpus is checked, too, the mean of that and of the corpus check: it says more.
"""

from dataclasses import dataclass

from stages.rlhf.chat import cited, declines, without_citations
from stages.rlhf.evidence.corpus_check import CorpusCheck
from stages.rlhf.evidence.grounding import source
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
        number = cited(answer) or 0
        shown = passages[max(0, number - 1) : number]
        if not source(self.support, question, shown, statement):
            return -1.0
        return (1 + self.corpus(question, statement)) / 2 if self.corpus else 1.0
