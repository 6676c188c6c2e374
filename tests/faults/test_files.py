"""Every content at every place: read right, or refused at once in a sentence that names the file."""

import shutil
from collections import Counter

import pytest

from kanjilab.models.loading import load_base
from tests.faults.bounds import bounded
from tests.faults.contents import CHANGED, REPLACED
from tests.faults.places import places, sound_files

PLACES = list(places(type("Base", (), {"denoiser": None})()))
PLAIN = (ValueError, OSError, RuntimeError)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = sound_files(tmp_path_factory.mktemp("sound"))
    return folder, places(load_base(folder / "base"))


def outcome(place, folder):
    """`read`, `refused`, or what is wrong with how it ended."""
    try:
        with bounded():
            place.read(folder)
        return "read"
    except PLAIN as error:
        named = str(folder) in str(error) or place.file.rpartition("/")[2] in str(error)
        if type(error) is RecursionError or not named or len(str(error)) > 2_000:
            return f"{type(error).__name__}: {str(error)[:300]!r}"
        return "refused"
    except BaseException as error:  # what a command would show as a traceback
        return f"{type(error).__name__}: {str(error)[:300]!r}"


@pytest.mark.parametrize("name", PLACES)
def test_a_content_is_read_right_or_refused_in_a_sentence(name, sound, tmp_path, record_property):
    place, source = sound[1][name], sound[0] / sound[1][name].source
    original = (source / place.file).read_bytes()
    if place.sound:
        assert outcome(place, source) == "read"
    wrong, counts = {}, Counter()
    for content in (*REPLACED, *CHANGED):
        folder = shutil.copytree(source, tmp_path / f"{len(counts) + counts.total()}")
        path = folder / place.file
        path.unlink()
        if content in CHANGED:
            path.write_bytes(CHANGED[content](original))
        else:
            REPLACED[content](path)
        came = outcome(place, folder)
        counts[came if came in ("read", "refused") else "wrong"] += 1
        if came != ("read" if content in place.right else "refused"):
            wrong[content] = came
        shutil.rmtree(folder)
    told = f"{counts.total()} contents, {counts['refused']} refused, {counts['read']} read"
    record_property("measured", f"faults, {name}: {told}")
    assert wrong == {}
