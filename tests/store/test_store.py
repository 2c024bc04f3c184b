"""Shards and the quadratic model survive damage only by being found out."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.errors import CorruptShard, DamagedFile, UserError, in_words
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.store.attempts import read_processes, recording
from hpcmpq.store.h5_files import read_array, read_attribute, read_h5, write_h5
from hpcmpq.store.json_files import read_json, write_artefact, write_json
from hpcmpq.store.npz_files import read_finished, read_npz, write_finished, write_npz
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic, write_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, pending, read_shard, write_shard
from hpcmpq.store.solution_file import read_solution
from tests.synthetic_run import synthetic_plan, write_run


def make_shard(seed: int = 0) -> Shard:
    random = np.random.default_rng(seed)
    arrays = {"linear": random.normal(size=5), "quad": random.normal(size=(5, 40)), "loss": np.array(1.5)}
    return Shard("sums", "ab12", "f" * 64, 8, 2, arrays)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no 'assignment'"),
        ({"assignment": 5}, "assignment is '5'"),
        ({"assignment": {"a": 4}}, "a is '4'"),
        ({"assignment": {}, "costs": {"bops": "9"}}, "bops is '9'"),
        ({"assignment": {}, "portfolio": [{"name": 3}]}, "name is '3'"),
        ({"assignment": {}, "predicted_loss": float("nan")}, "it holds NaN, which is no number"),
    ],
)
def test_an_artefact_without_a_checksum_holds_what_it_should(tmp_path, values, said):
    path = tmp_path / "solution.json"
    write_json(path, values, allow_nan=True)
    with pytest.raises(DamagedFile, match=re.escape(f"{path} is damaged ({said}")) as raised:
        assert read_json(path, "hpcmpq solve")["assignment"]
    assert "run `hpcmpq solve` again" in str(raised.value)


def test_an_assignment_without_a_checksum_is_one_of_the_plan(tmp_path):
    run = write_run(tmp_path / "run")
    values = read_json(run.solution_path, "hpcmpq solve")
    assert read_solution(run) == values
    group, *others = values["assignment"]
    write_json(run.solution_path, {**values, "assignment": {**values["assignment"], group: "int9"}})
    with pytest.raises(UserError, match=f"is damaged or was edited and gives {group} 'int9'"):
        read_solution(run)
    write_json(run.solution_path, {**values, "assignment": dict.fromkeys(others, "int4")})
    with pytest.raises(DamagedFile, match="its assignment does not name the plan's 28 groups"):
        read_solution(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"formats": [["int4", "int99"]] * 28}, "ValueError unknown format 'int99'"),
        ({"active_fixed_bytes": 8}, "ValueError active_fixed_bytes without tokens_per_sample"),
        ({"original": {"outputs": [0.5, "x"]}}, "an entry of outputs is 'x'"),
    ],
)
def test_a_plan_without_a_checksum_is_one_that_stages_can_use(tmp_path, change, said):
    run = write_run(tmp_path / "run")
    write_json(run.plan_path, {**read_json(run.plan_path, ""), **change})
    with pytest.raises(
        DamagedFile, match=re.escape(f"plan.json is damaged ({said}); run `hpcmpq plan CONFIG")
    ):
        read_plan(run)


def test_what_stands_in_the_place_of_a_file_is_to_be_moved_away(tmp_path):
    path = tmp_path / "solution.json"
    path.mkdir()
    with pytest.raises(DamagedFile, match=r"it is a directory; move it away\); run `hpcmpq solve` again"):
        read_json(path, "hpcmpq solve")
    with pytest.raises(
        UserError, match=r"cannot write .*: Is a directory; move away what stands in its place"
    ):
        write_json(path, {})
    (tmp_path / "times").write_text("a file")
    with pytest.raises(
        UserError, match=r"cannot write .*; move away what stands in its place and run the same"
    ):
        write_json(tmp_path / "times" / "solve.json", {})
    with pytest.raises(IsADirectoryError) as raised:
        path.unlink()
    assert "move away what is there" in str(in_words(raised.value))


def test_attempts_that_are_gone_or_no_file_do_not_count(tmp_path):
    run = RunDir(tmp_path)
    run.attempts_path.mkdir()
    with recording(run, "here"):
        pass
    (run.attempts_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (run.attempts_path / "folder.jsonl").mkdir()
    assert [process.host for process in read_processes(run)] == ["here"]


def make_model() -> QuadraticModel:
    random = np.random.default_rng(0)
    quad = random.normal(size=(4, 4))
    return QuadraticModel(
        option_group=("a", "a", "b", "b"),
        option_format=("int2", "int4", "int2", "int4"),
        linear_P=random.normal(size=4),
        quad_PP=quad + quad.T,
        stderr_linear_P=np.ones(4),
        stderr_quad_PP=np.ones((4, 4)),
        loss0=0.25,
        objective="kl",
        method="secant",
        num_samples=7,
        batch_linear_BP=np.zeros((0, 4)),
        batch_quad_BPP=np.zeros((0, 4, 4)),
    )


def test_shard_round_trip(tmp_path):
    run, shard = RunDir(tmp_path), make_shard()
    write_shard(run, shard)
    read = read_shard(run.shard_path("ab12"))
    assert (read.kind, read.unit_id, read.fingerprint) == (shard.kind, shard.unit_id, shard.fingerprint)
    assert (read.num_samples, read.num_batches) == (8, 2)
    assert all(np.array_equal(read.arrays[name], array) for name, array in shard.arrays.items())
    assert [path.name for path in run.shards_path.iterdir()] == ["ab12.h5"]


def test_same_content_gives_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(RunDir(tmp_path / name), make_shard())
    first, second = ((tmp_path / name / "shards" / "ab12.h5").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("place", np.linspace(0.02, 0.98, 25))
def test_a_flipped_bit_is_found_or_harmless(tmp_path, place):
    run, shard = RunDir(tmp_path), make_shard()
    write_shard(run, shard)
    path = run.shard_path("ab12")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)
    try:
        read = read_shard(path)
    except CorruptShard as error:
        assert "run `hpcmpq calibrate` again" in str(error)
    else:  # the flip hit unused space
        assert all(np.array_equal(read.arrays[name], array) for name, array in shard.arrays.items())


def test_a_flipped_payload_bit_is_found(tmp_path):
    run, shard = RunDir(tmp_path), make_shard()
    write_shard(run, shard)
    path = run.shard_path("ab12")
    content = bytearray(path.read_bytes())
    place = content.find(shard.arrays["quad"].tobytes()[:16])
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShard, match="damaged"):
        read_shard(path)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_shard_is_found(tmp_path, fraction):
    run = RunDir(tmp_path)
    write_shard(run, make_shard())
    path = run.shard_path("ab12")
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(CorruptShard):
        read_shard(path)


def test_quadratic_round_trip(tmp_path):
    model = make_model()
    write_quadratic(tmp_path / "quadratic.h5", model, np.arange(4.0), "f")
    read = read_quadratic(tmp_path / "quadratic.h5")
    assert read.option_group == model.option_group
    assert read.option_format == model.option_format
    assert np.array_equal(read.quad_PP, model.quad_PP)
    assert (read.loss0, read.objective, read.method, read.num_samples) == (0.25, "kl", "secant", 7)


def test_missing_artefacts_name_the_command(tmp_path):
    with pytest.raises(UserError, match="run `hpcmpq reduce .*` first"):
        read_quadratic(tmp_path / "quadratic.h5")
    with pytest.raises(UserError, match="run `hpcmpq solve` first"):
        read_json(tmp_path / "solution.json", "hpcmpq solve")


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path, "x") == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace(b"0.125", b"0.135"),
        lambda text: text.replace(b'"bound"', b'"bounc"'),
        lambda _: b"[]",
        lambda _: b"",
        lambda _: b"\xff\x00",
        lambda _: b"[" * 100_000,
    ],
)
def test_damaged_json_is_found_even_if_it_is_still_json(tmp_path, damage):
    path = tmp_path / "solution.json"
    values = {"assignment": {"a": "int4"}, "bound": 0.125, "places": (1, 2), "costs": {3: None}}
    write_artefact(path, values)
    assert read_json(path, "hpcmpq solve") == json.loads(json.dumps(values))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match="run `hpcmpq solve` again"):
        read_json(path, "hpcmpq solve")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("solution.json", '{"objective": 1e999}', "objective is 'inf'"),
        ("evaluation.json", '{"paired": {"kl": {"q - u": {"interval": ["0", 1]}}}}', "interval is"),
        ("plan.json", '{"groups": [{"members": [{"num_rows": "8"}]}]}', "num_rows is '8'"),
        ("cost.json", '{"forwards": null}', "forwards is 'None'"),
        ("proof.json", '{"lines": [{"node": 1.5}]}', "node is '1.5'"),
        ("times/prefill-000.json", '{"combinations": {"a": {"0": ["1"]}}}', "an entry of 0 is '1'"),
        ("screen/round_1.json", '{"options": [true]}', "an entry of options is 'True'"),
    ],
)
def test_numbers_of_artefacts_without_a_checksum_are_numbers(tmp_path, name, text, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(DamagedFile, match=rf"is damaged \({re.escape(said)}.*\); run `hpcmpq x` again"):
        read_json(path, "hpcmpq x")


def test_json_under_the_name_of_other_json_is_damage(tmp_path):
    """In whatever run and folder it lies; earlier versions' checksums do not say under which name."""
    first, second = tmp_path / "round_1.json", tmp_path / "run" / "round_2.json"
    for number, path in enumerate((first, second)):
        write_artefact(path, {"options": [number]})
    moved = tmp_path / "moved" / first.name
    moved.parent.mkdir()
    moved.write_bytes(first.read_bytes())
    assert read_json(moved, "hpcmpq calibrate") == {"options": [0]}
    second.write_bytes(first.read_bytes())
    with pytest.raises(DamagedFile, match="run `hpcmpq calibrate` again"):
        read_json(second, "hpcmpq calibrate")
    text = json.dumps({"options": [0]})
    before = json.dumps(
        {"options": [0], "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}
    )
    for path in (first, second):
        path.write_text(before)
        assert read_json(path, "hpcmpq calibrate") == {"options": [0]}


def test_a_key_that_json_lacks_is_damage_however_it_is_asked(tmp_path):
    path = tmp_path / "round_1.json"
    write_artefact(path, {"options": [{"a": 1}]})
    values = read_json(path, "hpcmpq calibrate")
    for ask in (values.__getitem__, values.pop, values["options"][0].pop):
        with pytest.raises(DamagedFile, match=r"damaged \(no 'cost'\); run `hpcmpq calibrate` again"):
            ask("cost")
    assert values.pop("cost", 3) == 3 and values.pop("options") == [{"a": 1}] and not values


def test_h5_under_the_name_of_other_h5_is_damage(tmp_path):
    """Whatever is asked of it that it does not hold."""
    path = tmp_path / "quadratic.h5"
    write_h5(path, {"codes": np.arange(3)}, {"fingerprint": "f" * 64})
    arrays, attributes = read_h5(path, "hpcmpq reduce")
    assert arrays["codes"].tolist() == [0, 1, 2] and arrays.get("linear") is None
    for ask in (lambda: arrays["linear"], lambda: attributes["loss0"], lambda: read_quadratic(path)):
        with pytest.raises(CorruptShard, match=r"quadratic\.h5 is damaged \(no '.*'\); run `hpcmpq reduce"):
            ask()
    with pytest.raises(CorruptShard, match=r"damaged \(no 'kind'\); run `hpcmpq calibrate` again"):
        read_shard(path)


def test_parts_of_a_damaged_h5_are_not_read(tmp_path):
    """A bit anywhere: what is read alone is what was written, or nothing."""
    path, tokens_LE = tmp_path / "quadratic.h5", np.arange(12).reshape(3, 4)
    write_h5(path, {"tokens": tokens_LE, "other": np.arange(100.0)}, {"fingerprint": "f" * 64})
    whole = path.read_bytes()
    assert read_attribute(path, "fingerprint") == "f" * 64
    random = np.random.default_rng(0)
    for number, place in enumerate(random.permutation(len(whole))[:100]):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        os.utime(path, ns=(number, number))  # clocks of file systems are coarse
        assert read_attribute(path, "fingerprint") is None
        assert read_array(path, "tokens") is None


def test_every_flipped_bit_of_an_npz_is_found(tmp_path):
    path, arrays = tmp_path / "x.npz", {"loss": np.arange(3.0), "name": np.array("a")}
    write_npz(path, arrays)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.permutation(len(whole))[:200]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            assert str(read_npz(path)) == str(arrays)  # a date, say
        except DamagedFile:
            continue


def test_finished_work_under_the_name_of_other_work_is_done_again(tmp_path, caplog):
    """Of another place, or of another content, which the folder is named after; wherever the run has gone."""
    first, second, other = (tmp_path / "run" / name for name in ("a/0001.npz", "a/0002.npz", "b/0001.npz"))
    for number, path in enumerate((first, second, other)):
        write_finished(path, {"choice": np.array([number])})
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    assert read_finished(moved / "a/0001.npz", "solving it anew") == {"choice": np.array([0])}
    for foreign in (second, other):
        first.write_bytes(foreign.read_bytes())
        assert read_finished(first, "solving it anew") is None
        assert not first.exists()
        assert f"{first} is another piece of work; solving it anew" in caplog.text
    write_npz(first, {"choice": np.array([0])})  # as versions before did
    assert read_finished(first, "solving it anew") is None


def test_a_directory_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    path, save, times = tmp_path / "evaluation" / "x.npz", np.savez, iter((True, False))

    def removed_once(file, **arrays):
        save(file, **arrays)
        if next(times):
            shutil.rmtree(path.parent)

    monkeypatch.setattr(np, "savez", removed_once)
    write_npz(path, {"a": np.arange(2)})
    assert read_npz(path)["a"].tolist() == [0, 1]
    with pytest.raises(FileNotFoundError):
        read_npz(path.with_name("y.npz"))


def test_a_shard_under_the_name_of_another_unit_is_measured_again(tmp_path):
    run, plan = RunDir(tmp_path), synthetic_plan()
    for unit in plan.units:
        write_shard(run, replace(make_shard(), unit_id=unit.id, fingerprint=plan.fingerprint))
    assert pending(plan, run) == ([], {})
    first, second, *_ = plan.units
    run.shard_path(first.id).write_bytes(run.shard_path(second.id).read_bytes())
    missing, damaged = pending(plan, run)
    [sentence] = damaged.values()
    assert missing == [first] and list(damaged) == [first.id] and "belongs to another unit" in sentence
