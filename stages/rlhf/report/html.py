"""The HTML report of a run: one self-contained file, without network requests.

The template engine escapes all data, and a Content-Security-Policy forbids scripts and requests, so
that a response cannot execute anything.
"""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.rlhf.config.limits import Limits
from stages.rlhf.measure.text import length
from stages.rlhf.report import comparison
from stages.rlhf.report.structure import Part

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MODELS = {"base": "기반 모델", "sft": "SFT", "ppo": "PPO", "best_of_n": "best-of-n"}
SHOWN = ("base", "sft", "ppo")  # models of a sample
ANSWERERS = {**{name: MODELS[name] for name in SHOWN}, "checked": "PPO, 근거와 맞춘 답"}
KINDS = {
    "unseen_wording": "처음 보는 표현",
    "never_asked": "물은 적 없는 사실",
    "unseen_ending": "처음 보는 어미",
}
METRICS = {  # titles and formats in the comparison table
    "cosine": ("코사인", "{:.3f}"),
    "euclidean_distance": ("유클리드 거리", "{:.3f}"),
    "euclidean_similarity": ("유클리드 유사도", "{:.3f}"),
    "pearson": ("피어슨", "{:.3f}"),
    "chrf": ("chrF", "{:.1f}"),
    "chrf_plus_plus": ("chrF++", "{:.1f}"),
    "exact": ("정확히 일치", "{:.3f}"),
    "contains": ("정답 포함", "{:.3f}"),
    "wrong_fact_rate": ("틀린 사실", "{:.3f}"),
    "eos_rate": ("스스로 끝맺음", "{:.3f}"),
    "repetition": ("되풀이", "{:.3f}"),
    "copy_rate": ("질문 베낌", "{:.3f}"),
    "length": ("글자 수", "{:.1f}"),
    "polite_rate": ("존댓말", "{:.3f}"),
    "level_consistency": ("말투 일관", "{:.3f}"),
    "non_hangul_share": ("한글 아닌 글자", "{:.3f}"),
    "broken_rate": ("깨진 글자", "{:.3f}"),
    "truncation_rate": ("문장 중간에 끊김", "{:.3f}"),
    "distinct_1": ("distinct-1", "{:.3f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
}
PAIRED = {
    "chrf_gain": ("chrF 차이", "{:+.1f}"),
    "cosine_gain": ("코사인 차이", "{:+.3f}"),
    "exact_gain": ("정확히 일치 차이", "{:+.3f}"),
    "contains_gain": ("정답 포함 차이", "{:+.3f}"),
    "win_rate": ("판정 승률", "{:.3f}"),
    "win_rate_decided": ("갈린 질문의 승률", "{:.3f}"),
    "win_rate_length_controlled": ("길이 통제 승률", "{:.3f}"),
    "chrf_win_rate_decided": ("chrF로 갈린 질문의 승률", "{:.3f}"),
    "judge_agreement": ("판정과 chrF의 일치", "{:.3f}"),
}
CONDITIONS = {"closed": "근거 없이", "rag": "찾은 근거로", "evidence_out": "근거를 뺐을 때"}
GROUNDED = {  # titles and formats of a block of grounded.matrix
    "exact": ("정확히 일치", "{:.3f}"),
    "contains": ("정답 포함", "{:.3f}"),
    "wrong_fact_rate": ("틀린 사실", "{:.3f}"),
    "supported": ("밝힌 근거에 답이 있음", "{:.3f}"),
    "declined": ("모른다고 답함", "{:.3f}"),
}
REFUSAL = {
    "precision": ("모른다는 답이 옳음", "{:.3f}"),
    "recall": ("근거가 없을 때 모른다고 함", "{:.3f}"),
}
RANKING = {
    "accuracy": ("쌍 정확도", "{:.3f}"),
    "length_only_accuracy": ("길이만 볼 때", "{:.3f}"),
    "accuracy_length_matched": ("길이가 같은 쌍", "{:.3f}"),
    "kendall_tau": ("켄달 τ", "{:.3f}"),
    "spearman_rho": ("스피어만 ρ", "{:.3f}"),
    "margin_mean": ("마진 평균", "{:.2f}"),
    "margin_std": ("마진 표준편차", "{:.2f}"),
    "p_margin_gt_0": ("Pr[마진 > 0]", "{:.3f}"),
    "p_margin_gt_0_5": ("Pr[마진 > .5]", "{:.3f}"),
    "length_correlation_given_rank": ("길이 편향", "{:+.3f}"),
    "ece": ("보정 오차", "{:.3f}"),
}
GATES = {
    "ppo_beats_sft": "코사인 차이와 갈린 질문의 판정 승률 가운데 하나는 95 % 구간이 동등(0, 0.5)"
    " 위에 있고, 어느 것도 그 아래에 있지 않음 (업데이트를 고른 chrF는 채점하지 않음)",
    "no_repetition": "되풀이와 베낌이 SFT보다 {limits.repetition_slack} 넘게 늘지 않음",
    "ends": "스스로 끝맺는 답이 {eos_rate} 이상 (실제 데이터에서는 SFT 이상)",
    "length_in_band": "평균 길이가 참조의 ±{limits.length_band:.0%} 안",
    "rm_ok": "보상 모델이 고른 best-of-4를 판정 모델도 SFT보다 낫다고 함",
}
PARTS = {"sft": "SFT", "rm": "보상 모델", "ppo": "PPO", "corpus": "말뭉치"}
SPLITS = {
    "train": "학습",
    "validation": "검증",
    "test": "시험",
    "judge_train": "판정 학습",
    "judge_test": "판정 시험",
}
REASONS = {  # of cleaning.Reason
    "malformed": "모양이 맞지 않음",
    "unknown_split": "분할의 이름을 알 수 없음",
    "empty_question": "질문이 비어 있음",
    "empty_answer": "답변이 비어 있음",
    "answer_equals_question": "답변이 질문 그대로",
    "placeholder": "이름이나 주소를 가린 자리가 남음",
    "declines": "근거 문단이 없는데 근거가 없다고 답함",
    "too_few_answers": "서로 다른 답변이 둘이 안 됨",
    "all_tied": "모든 답변의 순위가 같음",
    "bad_rank": "순위를 읽을 수 없음",
    "duplicate_question": "같은 질문이 이미 있음",
    "leak": "질문이 다른 분할에 속함",
    "judge_question": "판정 모델에게만 주는 질문",
    "contradicted": "순위가 서로 어긋남",
    "too_long": "토큰 한도를 넘음",
    "duplicate_answer": "같은 답변이 이미 있음",
    "no_order": "다른 답변과의 순위를 알 수 없음",
}
STRUCTURE = {  # titles and formats of structure.summary
    "architecture": ("구조", "{}"),
    "layers": ("층", "{}"),
    "hidden_size": ("은닉 크기", "{}"),
    "attention_heads": ("어텐션 헤드", "{}"),
    "vocabulary": ("어휘", "{:,}"),
    "parameters": ("파라미터", "{:,}"),
    "lora_rank": ("LoRA r", "{}"),
    "lora_alpha": ("LoRA alpha", "{}"),
    "trained_parameters": ("PPO가 학습하는 파라미터", "{:,}"),
    "trained_share": ("그 비율", "{:.2%}"),
}
FIGURES = {
    "eda/1_share": "그림 1. 단계별 데이터 비중",
    "eda/2_question_length": "그림 2. 단계별 질문 길이",
    "eda/3_answer_length": "그림 3. 단계별 답변 길이",
    "eda/4_sft_lengths": "그림 4. SFT 질문과 답변의 길이 분포",
    "eda/5_rank": "그림 5. 순위 분포",
    "eda/6_rank_length": "그림 6. 순위별 평균 답변 길이",
    "eda/7_category": "그림 7. 분야별 질문 비중",
    "eda/7_question_type": "그림 7. 유형별 질문 비중",
    "evaluate/8_base_sft": "그림 8. SFT 전후의 유사도 분포",
    "rm/9_score_length": "그림 9. 보상 점수와 답변 길이",
    "rm/10_rank_correlation": "그림 10. 사람 순위와의 상관",
    "rm/11_margins": "그림 11. 선호 마진 분포",
    "rm/12_margins_corrected": "그림 12. 길이 보정 뒤의 마진",
    "rm/reliability": "보상 모델의 확률 보정",
    "evaluate/ppo_curves": "PPO가 가는 동안: KL에 따른 chrF, 보상 모델, 판정 모델",
    "evaluate/13_similarity": "그림 13. 참조와의 유사도 분포",
    "evaluate/14_length_similarity": "그림 14. 답변 길이와 유사도",
    "evaluate/15_distributions": "그림 15. 코사인, 유클리드, 피어슨의 분포",
}


@dataclass(frozen=True)
class ReportInputs:
    """The data of the page; mappings as in their JSON files."""

    metrics: Mapping[str, Mapping[str, Any]]  # of preprocess, rm, judge, ppo, evaluate
    samples: Sequence[Mapping[str, Any]]  # the rows of samples.jsonl to show
    structure: Sequence[Part]
    numbers: Mapping[str, Any]  # structure.summary
    cards: Mapping[str, Mapping[str, Any]]  # model.json of each model
    limits: Limits
    params: Mapping[str, Any] = field(default_factory=dict)  # of `settings`


def settings(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All parameters of the run by dotted key, from the `params` of run.json files."""
    found: dict[str, Any] = {}

    def gather(value: Any, prefix: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                gather(inner, f"{prefix}.{key}" if prefix else key)
        else:
            found[prefix] = value

    for params in runs:
        gather(params, "")
    return dict(sorted(found.items()))


def gate_conditions(limits: Limits) -> dict[str, str]:
    """What each gate asks for, with the limits of this run."""
    numbers = {"limits": limits, "eos_rate": comparison.EOS_RATE}
    return {name: text.format(**numbers) for name, text in GATES.items()}


def page(inputs: ReportInputs, plots: Path) -> str:
    """The HTML. Raises ValueError if a figure is missing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    evaluate, preprocess = inputs.metrics["evaluate"], inputs.metrics["preprocess"]
    blocks = {"": {name: evaluate[name] for name in MODELS}} | {
        title: {name: evaluate[name]["by_kind"][kind] for name in MODELS}
        for kind, title in kinds(evaluate["sft"]).items()
    }
    environment.filters |= {"shown": shown, "spanned": spanned, "count": "{:,}".format}
    return environment.get_template(TEMPLATE.name).render(
        inputs=inputs,
        blocks=blocks,
        verdict=verdict(evaluate, inputs.metrics["ppo"]),
        passed=all(evaluate["gates"][name] for name in GATES),
        conditions=CONDITIONS,
        grounded=GROUNDED,
        refusal=REFUSAL,
        judge_doubt=evaluate["gates"].get("rm_ok_reason"),
        figures={title: inline(plots / f"{name}.png") for name, title in FIGURES.items()},
        length=length,
        models=MODELS,
        shown_models=SHOWN,
        answerers=ANSWERERS,
        kinds=kinds,
        columns=METRICS,
        paired=PAIRED,
        ranking=RANKING,
        gates=gate_conditions(inputs.limits),
        parts={part: preprocess[part] for part in PARTS if part in preprocess},
        part_names=PARTS,
        reasons=REASONS,
        splits=SPLITS,
        rejects=rejects(preprocess),
        structure=STRUCTURE,
    )


def rejects(preprocess: Mapping[str, Any]) -> dict[str, list[int]]:
    """{reason: [rejected rows per part of PARTS..., answers dropped from kept groups]}."""
    counts = [preprocess[part]["rejected"] for part in PARTS if part in preprocess]
    counts.append(preprocess["dropped_answers"])
    found = {reason for column in counts for reason in column}
    order = [*REASONS, *sorted(found - REASONS.keys())]
    return {r: [column.get(r, 0) for column in counts] for r in order if r in found}


def kinds(block: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the hold-out sets in a block, those of the sample first."""
    found = block.get("by_kind", {})
    order = [*(kind for kind in KINDS if kind in found), *(k for k in found if k not in KINDS)]
    return {kind: KINDS.get(kind, kind) for kind in order}


def verdict(evaluate: Mapping[str, Any], ppo: Mapping[str, Any]) -> str:
    """Whether RLHF helped, in one sentence."""
    failed = comparison.gates_that(evaluate["gates"], False)
    unknown = comparison.gates_that(evaluate["gates"], None)
    if ppo["skipped"]:
        return (
            "RLHF가 도움이 되었다고 말할 수 없습니다: PPO의 결과가 SFT의 가중치 그대로입니다"
            f" ({ppo['skipped_reason']})."
        )
    if failed:
        return (
            "RLHF가 도움이 되었다고 말할 수 없습니다: 통과하지 못한 게이트가 있습니다"
            f" ({', '.join(failed)})."
        )
    pair = evaluate["ppo_vs_sft"]
    if unknown:
        return (
            f"PPO 답변의 chrF는 SFT보다 {pair['chrf_gain']:.1f}점"
            f" [{pair['chrf_gain_ci_low']:.1f}, {pair['chrf_gain_ci_high']:.1f}] 높지만,"
            " 보상 모델이 옳은지는 알 수 없습니다: 판정할 수 없는 게이트가 있습니다"
            f" ({', '.join(unknown)})."
        )
    return (
        f"RLHF가 도움이 되었습니다: PPO 답변의 chrF는 SFT보다 {pair['chrf_gain']:.1f}점"
        f" [{pair['chrf_gain_ci_low']:.1f}, {pair['chrf_gain_ci_high']:.1f}] 높고, 참조와 똑같은"
        f" 답은 {100 * evaluate['sft']['exact']:.1f} %에서 {100 * evaluate['ppo']['exact']:.1f} %로"
        f" 바뀌었으며, 게이트 {len(evaluate['gates'])}개를 모두 통과했습니다."
    )


def shown(block: Mapping[str, Any], key: str, form: str) -> str:
    """A value of a block; a dash if it is null."""
    value = block.get(key)
    return "–" if value is None else form.format(value)


def spanned(block: Mapping[str, Any], key: str, form: str) -> str:
    """A value with its interval, if it has one."""
    low, high = (block.get(f"{key}_ci_{end}") for end in ("low", "high"))
    value = shown(block, key, form)
    if low is None:
        return value
    return Markup("{} <small>[{}, {}]</small>").format(value, form.format(low), form.format(high))


class Picture(NamedTuple):
    """An inlined figure: a data URL and its size in pixels."""

    source: Markup
    width: int
    height: int


def inline(path: Path) -> Picture:
    """A PNG as a data URL. Raises ValueError if the file is missing."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a figure")
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of IHDR, a PNG's first chunk
    source = Markup("data:image/png;base64," + base64.b64encode(content).decode("ascii"))
    return Picture(source, width, height)
