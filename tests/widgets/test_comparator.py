"""What the strip comparator shows: stored samples as tracks, a view of them both ways, its strip, files and code."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kanjilab.core.run_folder import RunFolder
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.widgets import comparator as module
from kanjilab.widgets.comparator import StripComparator, expected_of, page_html, reading_texts
from kanjilab.widgets.tracks import (
    Track,
    all_prompts,
    catalogue,
    checked_view,
    chosen,
    first_view,
    frame_images,
    name_runs,
    own_key,
    read_tracks,
    state_of,
    timeline,
    view_of,
)
from kanjilab.widgets.view_strips import view_strip
from tests.stored_runs import distinct_glyphs, store_run

HOSTILE = """</script><img src=x onerror="alert('1')">"""


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Two runs that share a prompt, a seed and the checkpoint before training, and differ in the rest."""
    store_run(tmp_path / "a", images_seen=(0, 100, 200), prompts=("water", "tree"), seeds=(0, 1), seed=1)
    store_run(tmp_path / "b", images_seen=(0, 150), prompts=("water", HOSTILE), seeds=(0, 7), seed=2)
    return {"one": tmp_path / "a", HOSTILE: tmp_path / "b"}


@pytest.fixture
def tracks(runs) -> list[Track]:
    return read_tracks(runs)


def called(code: str) -> StripComparator:
    return eval(code, {"StripComparator": StripComparator, "Path": Path})


# Tracks


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    folders = [tmp_path / name for name in ("x/run", "y/run", "y/x/run")]
    for folder in folders:
        store_run(folder)
    assert list(name_runs(folders)) == [f"{tmp_path.name}/x", f"{tmp_path.name}/y", "y/x"]
    assert list(name_runs(folders[:2])) == ["x", "y"]
    assert name_runs(tmp_path / "x") == {"x": tmp_path / "x" / "run"}
    assert name_runs({"mine": str(folders[0])}) == {"mine": folders[0]}
    with pytest.raises(ValueError, match="expected a run with stored samples"):
        name_runs(tmp_path / "x" / "run" / "checkpoints")


def test_a_run_without_samples_says_how_to_draw_them(tmp_path):
    RunFolder.create(tmp_path / "new", {})
    with pytest.raises(ValueError, match="sample_history draws and stores them"):
        read_tracks({"new": tmp_path / "new"})


def test_several_histories_of_a_run_are_told_apart_by_their_sampling(tmp_path):
    store_run(tmp_path / "a", guidance=3.0, seed=1)
    newer = store_run(tmp_path / "a", guidance=7.0, seed=2)
    tracks = read_tracks({"a": tmp_path / "a"})
    assert [track.label for track in tracks] == ["a: guidance 7.0", "a: guidance 3.0"]
    assert np.array_equal(tracks[0].images, newer)
    assert first_view(tracks).tracks == ("a: guidance 7.0",), "the newest alone"


@pytest.mark.parametrize(
    ("several", "labels"),
    [
        ([{"arm": 0}, {"arm": 1}], ["a: arm 0", "a: arm 1"]),
        ([{"arm": {"alpha": None}}, {"arm": {"alpha": 8.0}}], ["a: alpha 8.0", "a: alpha None"]),
        ([{"sampling": {"prefix": ""}}, {"sampling": {"prefix": "ink"}}], ["a: no prefix", "a: prefix ink"]),
    ],
)
def test_zero_none_and_empty_text_distinguish_tracks_too(tmp_path, several, labels):
    run = RunFolder.create(tmp_path / "a", {})
    for number, facts in enumerate(several):
        stored = {"images_seen": [0], "prompts": ["water"], "seeds": [0], "sampling": {}} | facts
        run.write_samples(f"history_{number}", distinct_glyphs((1, 1, 1), number), stored)
    assert sorted(track.label for track in read_tracks({"a": run.path})) == labels


def test_of_samples_that_were_asked_for_twice_the_newest_count(tmp_path):
    store_run(tmp_path / "a", images_seen=(0, 100), seed=1)
    newer = store_run(tmp_path / "a", images_seen=(0, 100, 200), seed=2)
    (track,) = read_tracks({"a": tmp_path / "a"})
    assert (track.label, track.images_seen) == ("a", (0, 100, 200))
    assert np.array_equal(track.images, newer)


def test_the_first_view_is_a_strip_whatever_was_drawn_since(tmp_path):
    strip = store_run(tmp_path / "a", images_seen=(0, 100, 200), guidance=3.0, seed=1)
    store_run(tmp_path / "a", images_seen=(200,), guidance=7.0, seed=2)
    tracks = read_tracks({"a": tmp_path / "a"})
    assert first_view(tracks).tracks == ("a: guidance 3.0",)
    assert np.array_equal(tracks[0].images, strip)


def test_a_wish_for_prompts_finds_the_samples_that_have_them(tmp_path):
    store_run(tmp_path / "a", prompts=("water", "tree"), seed=1)
    store_run(tmp_path / "a", prompts=("fire",), seed=2)
    store_run(tmp_path / "b", prompts=("water", "fire"), seed=3)
    runs = {name: tmp_path / name for name in "ab"}
    assert StripComparator(runs).view.tracks == ("a: prompts 1", "b")
    panel = StripComparator(runs, prompts=["tree", "water"])
    assert panel.view.tracks == ("a: prompts 2", "b")
    assert "tracks" not in panel.code and called(panel.code).view == panel.view
    panel.view = replace(panel.view, tracks=("b",), seeds=(1,), selected=("a: prompts 1", "fire", 0))
    assert called(panel.code).view == panel.view


def test_the_arms_of_a_study_are_tracks_with_their_checkpoints_in_order(tmp_path):
    run = RunFolder.create(tmp_path / "pack", {})
    prompts = [{"split": split, "prompt": prompt} for split, prompt in (("train", "water"), ("held_out", "tree"))]
    images = {seen: distinct_glyphs((2, 1), seen) for seen in (200, 100)}
    for rank in (4, 64):
        for seen, pixels in images.items():
            facts = {"key": f"{rank:016d}", "arm": {"rank": rank, "seed": 1}, "images_seen": seen}
            facts |= {"prompts": prompts, "noise_seeds": [0], "sampling": {}}
            run.write_samples(f"{rank:016d}-{seen}", pixels, facts)
    tracks = read_tracks({"pack": run.path})
    assert sorted(track.label for track in tracks) == ["pack: rank 4", "pack: rank 64"]
    assert (tracks[0].images_seen, tracks[0].prompts) == ((100, 200), ("water", "tree"))
    assert np.array_equal(tracks[0].images, np.stack([images[100], images[200]]))


def test_a_track_that_does_not_fit_its_images_is_refused():
    images = distinct_glyphs((2, 1, 1), 0)
    with pytest.raises(ValueError, match=r"expected uint8 \(3, 1, 1\)"):
        Track("a", (0, 1, 2), ("water",), (0,), images, {})
    with pytest.raises(ValueError, match="ascending"):
        Track("a", (1, 0), ("water",), (0,), images, {})


# Catalogue and view


def test_every_place_of_the_catalogue_leads_to_its_own_frame(tracks):
    listed, frames = catalogue(tracks), frame_images(tracks)
    assert listed["timeline"] == [0, 100, 150, 200]
    assert [entry["at"] for entry in listed["tracks"]] == [[0, 1, 1, 2], [0, 0, 1, 1]]
    found = 0
    for track, entry in zip(tracks, listed["tracks"], strict=True):
        for row, prompt in zip(entry["first"], listed["prompts"], strict=True):
            for first, seed in zip(row, listed["seeds"], strict=True):
                glyphs = track.cell(prompt, seed)
                assert (first < 0) == (glyphs is None)
                for checkpoint, glyph in enumerate(() if glyphs is None else glyphs):
                    assert np.array_equal(frames[first + checkpoint], glyph)
                    found += 1
    assert found == len(frames) == 2 * 2 * 3 + 2 * 2 * 2
    json.dumps(listed)


def test_a_view_survives_the_way_to_the_browser_and_back(tracks):
    view = replace(
        first_view(tracks),
        prompts=(HOSTILE, "water"),
        seeds=(7, 0),
        columns="runs",
        images_seen=150,
        selected=(HOSTILE, "water", 7),
        pinned=("one", "tree", 1, 100),
        compare="difference",
        judge="B",
        cell_px=64,
    )
    state = json.loads(json.dumps(state_of(view, tracks)))
    assert (state["step"], state["pinned"], state["seeds"]) == (2, [0, 1, 1, 1], [2, 0])
    assert view_of(state, tracks) == view
    for wrong in ({"step": 4}, {"tracks": [-1]}, {"columns": "x"}, {"judge": "C"}, {"cell_px": 10_000}):
        with pytest.raises(ValueError, match="expected"):
            view_of(state | wrong, tracks)


def test_the_first_view_keeps_long_lists_for_later(tmp_path):
    store_run(tmp_path / "a", prompts=[f"prompt {index}" for index in range(30)], seeds=(3, 4))
    view = first_view(read_tracks({"a": tmp_path / "a"}))
    assert (len(view.prompts), view.seeds, view.images_seen) == (12, (3,), 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ["fire"]}, r"prompts: expected some of .* got \['fire'\]"),
        ({"seeds": [3]}, r"seeds: .* got \[3\]"),
        ({"images_seen": 120}, r"images_seen: .* got \[120\]"),
        ({"pinned": ("one", "tree", 1, 5)}, r"images_seen: .* got \[5\]"),
        ({"compare": "squint"}, "compare"),
    ],
)
def test_a_choice_that_is_not_there_is_named(runs, options, message):
    with pytest.raises(ValueError, match=message):
        StripComparator(runs, **options)


# Code


def test_the_code_shows_the_same_again(runs):
    panel = StripComparator(runs, seeds=[0, 7], judge="B", columns="runs", images_seen=100)
    view = replace(panel.view, pinned=(HOSTILE, HOSTILE, 7, 150), compare="blink", selected=("one", "tree", 0))
    panel.view = view
    assert called(panel.code).view == view
    assert called(StripComparator(runs).code).view == StripComparator(runs).view
    assert re.fullmatch(r"StripComparator\(\s*\{.*\},?\s*\)", StripComparator(runs).code), "no more than was chosen"


def test_a_change_in_the_browser_changes_the_code(runs):
    panel = StripComparator(runs)
    panel._view.state = panel._view.state | {"step": 1, "columns": "runs"}
    assert panel.view.images_seen == 100
    assert panel._code.code == panel.code and "images_seen=100" in panel.code


def test_the_enlarged_glyph_is_one_of_the_chosen(runs):
    assert StripComparator(runs, tracks=[HOSTILE], seeds=[7], prompts=[HOSTILE]).view.selected == (HOSTILE, HOSTILE, 7)


# Strips


def test_a_strip_of_checkpoints_leaves_blank_what_was_not_drawn(tracks):
    view = replace(first_view(tracks), seeds=(0,))
    strip = view_strip(tracks, view)
    assert strip.column_labels == ("before", "100", "150", "200")
    assert strip.row_labels == ("one", HOSTILE, "one", HOSTILE), "water twice, then the one prompt of each"
    assert strip.row_groups == (("water", 2), ("tree", 1), (HOSTILE, 1))
    one, other = tracks
    assert np.array_equal(strip.images[0][[0, 1, 3]], one.cell("water", 0))
    assert np.array_equal(strip.images[1][[0, 2]], other.cell("water", 0))
    assert strip.images[0, 2].min() == strip.images[1, 1].min() == strip.images[1, 3].min() == 255


def test_a_strip_of_runs_holds_the_last_checkpoint_so_far(tracks):
    view = replace(first_view(tracks), seeds=(0, 1), columns="runs", images_seen=150)
    strip = view_strip(tracks, view)
    assert strip.row_labels == ("water", "tree", HOSTILE)
    assert strip.column_groups == (("one", 2), (HOSTILE, 2))
    one, other = tracks
    assert np.array_equal(strip.images[0, 0], one.cell("water", 0)[1]), "150 seen: its checkpoint is that of 100"
    assert np.array_equal(strip.images[0, 2], other.cell("water", 0)[1])
    assert strip.images[0, 3].min() == strip.images[1, 2].min() == 255, "seed 1, and tree, it never drew"


def test_gray_and_coloured_tracks_fit_in_one_strip(tracks):
    coloured = np.stack([tracks[1].images] * 3, axis=-1)
    mixed = [tracks[0], replace(tracks[1], images=coloured)]
    view = replace(first_view(tracks), columns="runs", images_seen=150)
    for columns in ("checkpoints", "runs"):
        plain = view_strip(tracks, replace(view, columns=columns))
        assert np.array_equal(view_strip(mixed, replace(view, columns=columns)).images, plain.images)


def test_tracks_of_two_sizes_fit_in_one_strip(tracks):
    large = tracks[1].images.repeat(2, axis=3).repeat(2, axis=4)
    for mixed in (large, np.stack([large] * 3, axis=-1)):
        sizes = [tracks[0], replace(tracks[1], images=mixed)]
        for columns in ("checkpoints", "runs"):
            view = replace(first_view(tracks), columns=columns, images_seen=150)
            plain = view_strip(tracks, view).images.repeat(2, axis=2).repeat(2, axis=3)
            assert np.array_equal(view_strip(sizes, view).images, plain)


def test_an_empty_choice_is_refused(tracks):
    view = replace(first_view(tracks), seeds=())
    assert chosen(tracks, view) == [] and checked_view(view, tracks) is view
    with pytest.raises(ValueError, match="got none"):
        view_strip(tracks, view)


# Files and browser


def test_files_show_what_is_chosen(runs, tmp_path):
    panel = StripComparator(runs, prompts=["water"], selected=("one", "water", 1))
    with Image.open(panel.save(tmp_path / "a.png")) as picture, Image.open(panel.save(tmp_path / "a.gif")) as film:
        assert (picture.size, film.n_frames) == (panel.picture().size, 3)
    assert json.loads((tmp_path / "a.json").read_text())["title"] == "water"
    with pytest.raises(ValueError, match=r"\.png, \.gif or \.html"):
        panel.save(tmp_path / "a.jpg")


def embedded(page: str) -> dict:
    return json.loads(re.search(r"^const values = (.*);$", page, re.MULTILINE)[1])


def test_the_page_holds_the_chosen_frames_and_obeys_no_text(tracks):
    view = replace(first_view(tracks), prompts=("water", HOSTILE), seeds=(0,), images_seen=100, judge="A")
    view = replace(view, selected=("one", "water", 0), pinned=("one", "tree", 1, 100))
    readings = {("A", number): f"text {number}" for number in range(len(frame_images(tracks)))}
    page = page_html(tracks, view, readings, title=HOSTILE)
    assert HOSTILE not in page and page.count("</script>") == 1
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    values, kept = embedded(page), chosen(tracks, view)
    assert values["catalogue"] == json.loads(json.dumps(catalogue(kept)))
    shown = [base64.b64decode(png) for png in values["frames"]]
    assert shown == [module.png_bytes(frame) for frame in frame_images(kept)]
    restored = view_of(values["state"], kept)
    assert (restored.images_seen, restored.pinned, restored.prompts) == (100, None, ("water", HOSTILE))
    where = {frame.tobytes(): number for number, frame in enumerate(frame_images(tracks))}
    for number, frame in enumerate(frame_images(kept)):
        assert values["readings"][f"A/{number}"] == f"text {where[frame.tobytes()]}"


def test_many_frames_wait_until_the_browser_asks(runs, monkeypatch):
    assert len(StripComparator(runs)._view.frames) == 20
    monkeypatch.setattr(module, "SENT_AT_ONCE_BYTES", 0)
    panel, sent = StripComparator(runs), []
    assert panel._view.lazy and panel._view.frames == []
    monkeypatch.setattr(panel._view, "send", lambda content, buffers=(): sent.append((content, buffers)))
    panel._answer(None, {"kind": "frames", "wanted": [19, 2, 20, -1]}, [])
    frames = frame_images(panel.tracks)
    assert sent == [({"kind": "frames", "numbers": [19, 2]}, [module.png_bytes(frames[number]) for number in (19, 2)])]


def test_readings_come_from_a_thread_once_for_each_frame(runs, monkeypatch):
    asked = []

    def read(judge, images, expected):
        asked.append((judge, len(images)))
        return [f"{judge}{image[0, 0]}" for image in images]

    monkeypatch.setattr(module, "reading_texts", read)
    panel, sent = StripComparator(runs), []
    monkeypatch.setattr(panel._view, "send", lambda content, buffers=(): sent.append(content))
    for wanted in ([0, 1, 99], [1, 2]):
        panel._answer(None, {"kind": "read", "judge": "B", "wanted": wanted}, [])
    panel._reader.shutdown()
    frames = frame_images(panel.tracks)
    assert [[number, f"B{frames[number][0, 0]}"] for number in (0, 1)] == sent[0]["entries"]
    assert ([entry[0] for entry in sent[1]["entries"]], asked) == ([1, 2], [("B", 2), ("B", 1)])


def test_frames_of_two_sizes_are_read(tmp_path, monkeypatch):
    for name, size_px in (("a", 64), ("b", 128)):
        store_run(tmp_path / name, images_seen=(0,), prompts=("water",), seeds=(0,), size_px=size_px)
    panel, sent = StripComparator([tmp_path / name for name in "ab"]), []
    monkeypatch.setattr(panel._view, "send", sent.append)
    panel._answer(None, {"kind": "read", "judge": "B", "wanted": [0, 1]}, [])
    panel._reader.shutdown()
    assert [message["kind"] for message in sent] == ["readings"]
    assert [number for number, _ in sent[0]["entries"]] == [0, 1]


def test_a_judge_that_fails_is_said(runs, monkeypatch):
    def fail(*_):
        raise OSError("no judge here")

    monkeypatch.setattr(module, "load_judge", fail)
    panel, sent = StripComparator(runs), []
    monkeypatch.setattr(panel._view, "send", sent.append)
    panel._answer(None, {"kind": "read", "judge": "B", "wanted": [0]}, [])
    panel._reader.shutdown()
    assert sent == [{"kind": "said", "text": "Judge B cannot read these glyphs: no judge here"}]


def test_a_file_that_cannot_be_is_refused_in_words(runs, monkeypatch):
    panel, sent = StripComparator(runs), []
    monkeypatch.setattr(panel._view, "send", lambda content, buffers=(): sent.append((content, buffers)))
    panel._answer(None, {"kind": "file", "ending": "png"}, [])
    panel.view = replace(panel.view, prompts=())
    panel._answer(None, {"kind": "file", "ending": "png"}, [])
    assert sent[0][0] == {"kind": "file", "name": "strip.png"} and sent[0][1][0].startswith(b"\x89PNG")
    assert sent[1][0]["kind"] == "refused" and "got none" in sent[1][0]["reason"]


def test_a_judge_reads_in_few_characters():
    glyphs = [np.asarray(draw_font(character, default_font(), 128)) for character in "休明"]
    texts = reading_texts("B", [*glyphs, np.full((128, 128), 255, np.uint8)])
    assert "≈ 休" in texts[0] and "≈ 明" in texts[1] and "月" in texts[1]
    assert texts[2] == "blank"
    assert reading_texts("B", [np.stack([glyphs[0]] * 3, axis=-1)]) == texts[:1]


def test_names_in_order_of_appearance(tracks):
    assert all_prompts(tracks) == ("water", "tree", HOSTILE)
    assert timeline(tracks[1:]) == (0, 150)


def test_an_arm_that_ended_before_its_run_has_no_checkpoint_twice(tmp_path):
    images = store_run(tmp_path / "a", images_seen=[0, 4, 8, 8, 8])
    (track,) = read_tracks({"a": tmp_path / "a"})
    assert track.images_seen == (0, 4, 8)
    assert np.array_equal(track.images, images[:3])


def test_the_right_part_is_told_apart_from_a_well_formed_glyph(tmp_path):
    glyphs = [np.asarray(draw_font(character, default_font())) for character in "休明"]
    texts = reading_texts("B", glyphs, [("木", "水"), ("木",)])
    assert texts[0].endswith("◎ ✓") and texts[1].endswith("○ ✓")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    assert reading_texts("B", [noise], [()])[0].endswith(" ✗") and "○" not in reading_texts("B", [noise], [()])[0]
    store_run(tmp_path / "a", prompts=("fire water", "queen"))
    (track,) = read_tracks({"a": tmp_path / "a"})
    assert expected_of(track, "fire water") == ("火", "水") and expected_of(track, "blorpt") == ()
    study = replace(track, facts={"prompts": [{"prompt": "queen", "expected": ["氵"]}]})
    assert expected_of(study, "queen") == ("水",)


def test_own_prompts_join_their_track_alone(tmp_path):
    store_run(tmp_path / "a", prompts=("water", "tree"), seed=1)
    before = read_tracks({"a": tmp_path / "a"})[0]
    run = RunFolder.open(tmp_path / "a")
    images = distinct_glyphs((3, 1, 2), 9)
    for name, key, prompt in (("x", own_key(before), "fish"), ("y", "another", "iron")):
        run.write_samples(f"history_own_{name}", images, {**before.facts, "prompts": [prompt], "own": key})
    (track,) = read_tracks({"a": tmp_path / "a"})
    assert (track.label, track.prompts) == (before.label, ("water", "tree", "fish"))
    assert np.array_equal(track.images[:, 2], images[:, 0]) and np.array_equal(track.images[:, :2], before.images)


def test_a_prompt_that_cannot_be_drawn_says_why(runs, monkeypatch):
    panel, sent = StripComparator(runs), []
    monkeypatch.setattr(panel._view, "send", lambda content, buffers=(): sent.append(content))
    panel._answer(None, {"kind": "prompt", "text": "fish"}, [])
    panel._worker.join(30)
    assert "“fish” cannot be drawn: " in sent[-1]["text"], "these runs have no checkpoints"
    panel._answer(None, {"kind": "prompt", "text": " water "}, [])
    panel._worker.join(30)
    assert "cannot be drawn" in sent[-1]["text"] or "is there already" in sent[-1]["text"]
