"""A certificate made up by hand."""

from kanjilab.evaluation.criteria import CRITERIA
from kanjilab.experiments.certificate import Certificate, Criterion, FoundPart, Nearest, Verdict


def verdict(judge="B", exists=False, failing=()) -> Verdict:
    """Of one judge: one part, and every criterion passed but those named."""
    criteria = tuple(Criterion(name, 1.0, 0.5, name not in failing, "") for name in CRITERIA)
    part = FoundPart("水", "water", (0.0, 0.1, 0.5, 0.9), 0.99)
    return Verdict(judge, (part,), "⿰", 0.9, criteria, (Nearest("休", "U+4F11", 0.8),), exists)


def certificate() -> Certificate:
    """Of a phrase in kanji; judge B finds it not novel."""
    facts = dict(phrase="海", translation="sea", prompt="left: water, right: three", reason="named", seed=3)
    facts |= dict(asked=("水", "三"), layout="⿰", verdicts=(verdict("A"), verdict("B", failing=("novel",))))
    facts |= dict(outline=(Nearest("沐", "U+6C90", 0.3),), novelty="not in the list of 5 characters", rejected="")
    return Certificate(**facts, writer="w", identity="i", sampling={"steps": 15}, version="0.1.0", picture="0" * 64)
