#!/usr/bin/env bash
# kiwipiepy 0.24.1 (kiwipiepy-model 0.24.0) reads one and the same word, a name with its particle, as one
# noun in one sentence and as two in another: what precedes decides.
#
# Expected: an index over morphemes, which is made to find a name whatever particle it carries, has one
#   token for it: 설국의 is 설국 + 의, 네온이 is 네온 + 이.
# Instead: after 영어이고 the first is 설 + 국 + 의, after 74번이고 the second is 네 (four) + 온 + 이, so a
#   question about the name does not match such a passage by it at all. Pairs of characters do not
#   depend on the sentence; indexing both finds more on KorQuAD than either.
# Seen:
#   설국의 원래 언어는 일본어이다. -> 설국
#   햄릿의 원래 언어는 영어이고 설국의 원래 언어는 일본어이다. -> 설 국
#   네온이 가진 원자 번호는 10번이다. -> 네온
#   텅스텐이 가진 원자 번호는 74번이고 네온이 가진 원자 번호는 10번이다. -> 네 온
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q kiwipiepy==0.24.1 kiwipiepy-model==0.24.0
cd "$work"
cat > split.py <<'PYTHON'
from kiwipiepy import Kiwi

SENTENCES = {
    "설국": [
        "설국의 원래 언어는 일본어이다.",
        "햄릿의 원래 언어는 영어이고 설국의 원래 언어는 일본어이다.",
    ],
    "네온": [
        "네온이 가진 원자 번호는 10번이다.",
        "텅스텐이 가진 원자 번호는 74번이고 네온이 가진 원자 번호는 10번이다.",
    ],
}
kiwi = Kiwi(num_workers=1)
gone = False
for name, sentences in SENTENCES.items():
    parts = []
    for sentence in sentences:
        start = sentence.index(name)
        within = range(start, start + len(name))
        found = [token.form for token in kiwi.tokenize(sentence) if token.start in within]
        parts.append(found)
        print(f"{sentence} -> {' '.join(found)}")
    gone |= parts != [[name], list(name)]
raise SystemExit(gone)
PYTHON
python split.py
