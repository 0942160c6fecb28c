#!/usr/bin/env python3
"""The paper's tables once more: trains or loads every row, measures it, and writes our numbers beside the paper's.

RUN_DIR/TABLE.md is the table; RUN_DIR/TABLE/ROW/seedN/ has each row's training, evaluation and result.json. Given
again, a command goes on where it was stopped: finished rows are kept, a training that was begun is resumed. Rows that
are the same network in several tables are trained once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import _cli
import _table_text
from _paper_tables import TABLES, Row, Table

EXAMPLES = """examples:
  small forms of the rows, on drawn images, for two cores:
    scripts/reproduce.py 2c,2d --proxy --seeds 0,1,2 --run-dir runs/proxy
    scripts/reproduce.py 2e --proxy --proxy-data outlines --seeds 0,1,2 --run-dir runs/outlines

  as in the paper, on 8 GPUs (ImageNet weights are fetched, or given by --backbone-weights resnet50=FILE):
    scripts/reproduce.py 2a --run-dir runs/paper --devices 8 --train instances_train.json --train-images train/ \\
        --val instances_val.json --val-images val/ --skip-bad

  one row, shorter; models that are there already:
    scripts/reproduce.py 2e --rows fcn --steps 20000 --run-dir runs/short ... input.shorter_edge=512
    scripts/reproduce.py 2b --rows sigmoid --checkpoint sigmoid=runs/first --run-dir runs/given --val ...

  persons, Cityscapes, seconds:
    scripts/reproduce.py 5,6 ... --train person_keypoints_train.json --val person_keypoints_val.json
    scripts/reproduce.py 7 --cityscapes cityscapes/ --run-dir runs/cityscapes --devices 8
    scripts/reproduce.py timing --run-dir runs/timing"""
RESULT, BEGUN = "result.json", "begun.json"
LARGE = ("checkpoints", "tensorboard", "model.keras", "start.weights.h5")  # of a finished proxy nobody needs them


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _tables(), _cli.OVERRIDES)
    add = parser.add_argument
    add("table", metavar="TABLE", help=f"{', '.join(TABLES)}, timing; several with commas")
    add("--run-dir", required=True, metavar="DIR", help="where everything goes")
    add("--proxy", action="store_true", help="small networks on drawn images in the place of the paper's")
    add(
        "--proxy-data",
        choices=["outlines"],
        help="other images for the proxies of instances: objects of which no two have one outline",
    )
    add("--rows", metavar="NAMES", help="some rows only, with commas")
    add("--seeds", metavar="NUMBERS", help="a training for each (default: 0; with --proxy 0,1,2)")
    add("--steps", type=int, metavar="N", help="training steps; warm-up and decay keep their share")
    add("--checkpoint", action="append", default=[], metavar="ROW=MODEL", help="a trained model for a row (repeatable)")
    add("--devices", metavar="N", help="number of GPUs, or 'auto' for all of them")
    add("--batch-size", type=int, metavar="N", help="images a step over all devices (default: of the preset)")
    add("--keep", action="store_true", help="keep models and checkpoints of finished proxies")
    data = parser.add_argument_group("data")
    data.add_argument("--train", metavar="JSON", help="training annotations, COCO format")
    data.add_argument("--train-images", metavar="DIR", help="the folder of their images")
    data.add_argument("--val", metavar="JSON", help="validation annotations")
    data.add_argument("--val-images", metavar="DIR", help="the folder of their images")
    data.add_argument("--cityscapes", metavar="DIR", help="the folder with leftImg8bit/ and gtFine/ (table 7)")
    data.add_argument("--skip-bad", action="store_true", help="leave bad records and images out, and tell of them")
    start = parser.add_argument_group("where trainings start")
    start.add_argument(
        "--backbone-weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="ImageNet weights in a file, as resnet50=resnet50.h5 (repeatable; default: fetched)",
    )
    start.add_argument("--coco-weights", default="coco", metavar="MODEL", help="for table 7 (default: fetched)")
    start.add_argument("--backbone-steps", type=int, default=500, metavar="N", help="of the proxies' backbones")
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def _tables() -> str:
    lines = [
        f"  {table.name:3} {table.title}: {', '.join(row.name for row in table.trained)}" for table in TABLES.values()
    ]
    return "\n".join(["tables and their rows:", *lines, "  timing: section 4.4"])


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    tables, seeds = check(arguments)
    run_dir = Path(arguments.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    made = {}
    if "timing" in tables:
        import _timing

        made["timing"] = _timing.write(run_dir, command_line())
    chosen = [TABLES[name] for name in tables if name != "timing"]
    for table in chosen:
        for seed in seeds:
            for row in rows_of(table, arguments.rows):
                result = finished_row(table, row, seed, arguments, overrides)
                print(f"{table.name}/{row.name} seed {seed}: {summary(table, result)}", flush=True)
                write(table, arguments)
        made[f"table_{table.name}"] = write(table, arguments)
    _cli.made(**made)
    return 0


def check(arguments: argparse.Namespace) -> tuple[list[str], list[int]]:
    """The tables and seeds that were asked for.

    Raises:
        UsageError: unknown ones, or arguments that do not go together.
    """
    tables = arguments.table.split(",")
    for name in tables:
        if name not in TABLES and name != "timing":
            raise _cli.UsageError(f"there is no table '{name}'; there are {', '.join(TABLES)}, timing")
    if arguments.proxy_data and not (
        arguments.proxy and all(name in TABLES and TABLES[name].data == "instances" for name in tables)
    ):
        raise _cli.UsageError("--proxy-data is for --proxy of the tables 1, 2a to 2e and 3")
    known = {row.name for name in tables if name in TABLES for row in TABLES[name].trained}
    for name in (arguments.rows or "").split(","):
        if name and name not in known:
            raise _cli.UsageError(f"--rows {name}: no such row; there are {', '.join(sorted(known))}")
    check_files(arguments, known)
    _cli.check_least(1, arguments, "steps", "batch_size", "backbone_steps")
    try:
        seeds = [int(seed) for seed in (arguments.seeds or ("0,1,2" if arguments.proxy else "0")).split(",")]
    except ValueError:
        raise _cli.UsageError(f"--seeds {arguments.seeds}: should be whole numbers, as in 0,1,2") from None
    return tables, list(dict.fromkeys(seeds))


def check_files(arguments: argparse.Namespace, rows: set[str]) -> None:
    """Refuses what is wrong with --checkpoint and --backbone-weights, before days of training come to it.

    Raises:
        UsageError: so it is.
    """
    for option, pairs in (("--checkpoint", arguments.checkpoint), ("--backbone-weights", arguments.backbone_weights)):
        for text in pairs:
            name, _, file = text.partition("=")
            if not file:
                raise _cli.UsageError(f"{option} {text}: should be NAME=FILE")
            if option == "--checkpoint" and name.rpartition("/")[2] not in rows:
                raise _cli.UsageError(f"{option} {text}: no such row; there are {', '.join(sorted(rows))}")
            if option == "--checkpoint" and not Path(file).exists():
                raise _cli.UsageError(f"{option} {text}: there is no such file")


def rows_of(table: Table, names: str | None) -> list[Row]:
    """The rows that are to be trained."""
    return [row for row in table.trained if not names or row.name in names.split(",")]


# === One row ===


def finished_row(table: Table, row: Row, seed: int, arguments: argparse.Namespace, overrides: dict) -> dict:
    """The result of a row with a seed: the stored one, that of the same network in another table, or a new one."""
    import _jobs

    folder = Path(arguments.run_dir) / table.name / row.name / f"seed{seed}"
    checkpoint = _jobs.checkpoint_of(table, row, arguments)
    if checkpoint is not None:
        identity, job = _jobs.given_identity(table, checkpoint, arguments, overrides), None
    else:
        job = _jobs.make_job(table, row, seed, arguments, overrides)
        identity = job.identity() | _jobs.step_identity(arguments)
    identity = json.loads(json.dumps(identity))
    stored = read_result(folder / RESULT)
    if stored is not None:
        check_same(stored["identity"], identity, folder / RESULT)
        return stored
    result = twin(Path(arguments.run_dir), seed, identity)
    if result is None:
        start = time.perf_counter()
        if job is None:
            result = given(table, checkpoint, folder, arguments, overrides)
        else:
            begin(identity, folder / BEGUN)
            result = trained(table, job, folder, arguments)
        result |= {"identity": identity, "seconds": round(time.perf_counter() - start), "command": command_line()}
    result = {"table": table.name, "row": row.name, "seed": seed, **_without(result, "table", "row", "seed")}
    store(result, folder / RESULT)
    if arguments.proxy and not arguments.keep:
        tidy(folder)
    return result


def trained(table: Table, job, folder: Path, arguments: argparse.Namespace) -> dict:
    """Trains (or goes on training) a row and measures it."""
    import keras

    import mrcnn_tf

    config, start = job.start(folder)
    options = {"devices": arguments.devices, "batch_size": arguments.batch_size, "verbose": 2}
    training = mrcnn_tf.train(config, job.train_set, run_dir=folder, **options, **start)
    metrics = measured(table, training.model, job.val_set, folder, job.eval_batch, drawn=arguments.proxy)
    _cli.print_problems(job.train_set, job.val_set)
    keras.utils.clear_session()  # dozens of models one after the other would fill the memory
    return {"steps": training.steps, "data": job.data, "start": job.weights, "metrics": metrics}


def given(table: Table, checkpoint: str, folder: Path, arguments: argparse.Namespace, overrides: dict) -> dict:
    """Measures a trained model, by its own classes in their order.

    Raises:
        UsageError: they are not those of the table's data.
    """
    import _jobs

    import mrcnn_tf

    model = mrcnn_tf.load(checkpoint, **overrides)
    val_set, data = _jobs.validation(table, arguments, model.config.class_names)
    names, count = model.config.class_names or val_set.class_names, model.config.num_classes
    if count != len(val_set.class_names) or names != val_set.class_names:
        known = f"the model knows {count} classes ({', '.join(names[:3])}, ...)"
        theirs = f"{len(val_set.class_names)} ({', '.join(val_set.class_names[:3])}, ...)"
        raise _cli.UsageError(f"--checkpoint {checkpoint}: {known}, {val_set.name} has {theirs}")
    metrics = measured(table, model, val_set, folder, 1)
    _cli.print_problems(val_set)
    return {"steps": None, "data": data, "start": f"the trained model {Path(checkpoint).name}", "metrics": metrics}


def measured(table: Table, model, val_set, folder: Path, batch: int, drawn: bool = False) -> dict:
    """All measures of a model, 0..1 or None. On `drawn` images COCO's stand for those of Cityscapes' benchmark."""
    import mrcnn_tf
    from mrcnn_tf.evaluation.coco import load_results

    evaluation = mrcnn_tf.evaluation_report(model, val_set, folder / "evaluation", batch_size=batch, pictures=4)
    metrics = dict(evaluation.metrics)
    if table.data == "cityscapes" and drawn:
        metrics |= {f"benchmark/{name}": metrics[f"mask/{name}"] for name in ("AP", "AP50")}
    elif table.data == "cityscapes":
        found = load_results(folder / "evaluation" / "results.json", val_set)
        benchmark = mrcnn_tf.evaluate_cityscapes(val_set, found)
        metrics |= {f"benchmark/{name}": value for name, value in benchmark.metrics.items()}
        metrics |= {f"benchmark/AP/{name}": values["AP"] for name, values in benchmark.per_class.items()}
    return {name: None if math.isnan(value) else float(value) for name, value in metrics.items()}


def twin(run_dir: Path, seed: int, identity: dict) -> dict | None:
    """The result of the same training under another table."""
    for path in sorted(run_dir.glob(f"*/*/seed{seed}/{RESULT}")):
        result = read_result(path)
        if result is not None and "config" in identity and up_to_date(result["identity"]) == identity:
            return {**result, "same_as": f"{result['table']}/{result['row']}"}
    return None


def begin(identity: dict, path: Path) -> None:
    """Notes what a training is of, or refuses to go on with one of other settings.

    Raises:
        UsageError: so it is.
    """
    begun = read_result(path)
    if begun is not None:
        check_same(begun, identity, path)
    else:
        store(identity, path)


def check_same(stored: dict, asked: dict, path: Path) -> None:
    """Refuses a stored result of other settings: a table must not mix them.

    Raises:
        UsageError: they differ; says in what.
    """
    then, now = _flat(up_to_date(stored)), _flat(asked)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        first = "; ".join(f"{name} was {then.get(name)!r}, now {now.get(name)!r}" for name in names[:5])
        raise _cli.UsageError(f"{path} is of other settings ({first}); take another --run-dir, or remove its folder")


def up_to_date(identity: dict) -> dict:
    """What was stored by an earlier version: fields that the configuration has gained since have their defaults."""
    from mrcnn_tf import Config, ConfigError

    try:
        config = Config.from_dict(identity["config"]).to_dict()
    except (KeyError, ConfigError):  # of a given model; of fields that are gone
        return identity
    return identity | {"config": json.loads(json.dumps(config))}


def _flat(value: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
    return flat


def _without(values: dict, *names: str) -> dict:
    return {name: value for name, value in values.items() if name not in names}


# === Files ===


def read_result(path: Path) -> dict | None:
    """A stored result; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def store(result: dict, path: Path) -> None:
    """Writes a result: whole, or not at all."""
    from mrcnn_tf.atomic import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(result, indent=2) + "\n", "utf-8"))


def tidy(folder: Path) -> None:
    """Removes what takes hundreds of megabytes of a finished training."""
    for name in LARGE:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def write(table: Table, arguments: argparse.Namespace) -> Path:
    """Writes RUN_DIR/TABLE.md from all results that are there."""
    results = {}
    for path in Path(arguments.run_dir).glob(f"*/*/seed*/{RESULT}"):
        result = read_result(path)
        results[result["table"], result["row"], result["seed"]] = result
    notes = [table.note]
    if arguments.proxy:
        import _proxy

        notes = [_proxy.NOTE, _proxy.NOTE_CITYSCAPES * (table.data == "cityscapes")]
    path = Path(arguments.run_dir) / f"{table.name}.md"
    path.write_text(_table_text.write_table(table, results, notes), encoding="utf-8")
    return path


def command_line() -> str:
    """The command as it was given; of absolute paths only the last part, for tables are shown to others."""
    return shlex.join(["scripts/reproduce.py", *map(_shown, sys.argv[1:])])


def _shown(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}{Path(value).name}" if os.path.isabs(value) else argument


def summary(table: Table, result: dict) -> str:
    """A result in a line."""
    values = [f"{metric} {_table_text.spread([result['metrics'].get(metric)])}" for metric in table.metrics]
    same = f" (as {result['same_as']})" if "same_as" in result else ""
    return ", ".join(values) + f", {result['seconds']} s{same}"


if __name__ == "__main__":
    _cli.run(main)
