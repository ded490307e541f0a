"""The toy family: what rotations between its seeds carry, each figure beside its control.

    python benchmarks/family.py [--folder build/family] [--steps 1500] [--sequences 4096]

Ingests the seeds that ship, trains two dictionaries a seed at one site (one seed for all, and one of its own), aligns
each cohort's first seed with the others, its checkpoints with its end and with an untrained model, and prints a table.
What is there already is not made again. The README's table is made by this command.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import duckdb

import signarium
from signarium import ingest

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
FAMILY = EXAMPLES / "dyck" / "family"
SITES = "resid_post.0;resid_mid.1;resid_post.1"
DICTIONARY_SITE = "resid_mid.1"
"""Where the cited paper steers the toy, and its dictionaries fail most."""
COHORTS = {"shared": ("shared-0", "shared-1", "shared-2"), "apart": ("apart-100", "apart-101", "apart-102")}
UNTRAINED = "shared-0-random-7"


def build(folder: Path, steps: int, sequences: int) -> Path:
    """The catalogue at `folder`, with everything that the table is made of."""
    signarium.load_plugin(EXAMPLES / "dyck")
    from dyck.__main__ import write_text

    folder.mkdir(parents=True, exist_ok=True)
    text, other, path = (
        folder / "brackets.jsonl",
        folder / "dictionary-brackets.jsonl",
        folder / "family.duckdb",
    )
    # Dictionaries are trained on other sequences than those that they are read on.
    for file, seed in ((text, 1), (other, 2)):
        if not file.exists():
            write_text(file, sequences, seed=seed)
    checkpoints = sorted(one.name for one in FAMILY.glob("shared-0-step-*"))
    every = [name for names in COHORTS.values() for name in names]
    for name in [*every, *checkpoints]:
        say(f"ingest {name}")
        ingest(
            path,
            str(FAMILY / name),
            name=name,
            text=text,
            max_tokens=20_000,
            context=64,
            sites=SITES,
            stages="types,states",
        )
    say(f"ingest {UNTRAINED}")
    ingest(
        path, str(FAMILY / "shared-0"), random_init=7, text=text, max_tokens=20_000, context=64, sites=SITES,
        stages="types,states",
    )  # fmt: skip
    c = signarium.open(path)
    for place, name in enumerate(every):
        for seed in (0, 1 + place):
            file = folder / f"{name}-sae-{seed}.safetensors"
            say(f"dictionary of {name}, seed {seed}")
            c.train_sae(
                name,
                DICTIONARY_SITE,
                text=other,
                output=file,
                seed=seed,
                steps=steps,
                context=64,
                max_tokens=131_072,
            )
            c.add_sae(file, model=name, site=DICTIONARY_SITE, name=f"{name}-{seed}")
    pairs = [(names[0], other) for names in COHORTS.values() for other in names[1:]]
    pairs += [(one, "shared-0") for one in checkpoints] + [("shared-0", UNTRAINED)]
    for a, b in pairs:
        say(f"align {a} {b}")
        c.align(a, b, text=text, sites=SITES, steer=DICTIONARY_SITE, context=64, max_tokens=131_072)
    return path


def table(path: Path) -> list[str]:
    """Markdown: a row a figure and control, a column a group of pairs; means over pairs and sites."""
    last = max(one.name for one in FAMILY.glob("shared-0-step-*"))
    groups = {
        "shared": "model LIKE 'shared-_' AND subject_id = 'shared-0'",
        "apart": "subject_id = 'apart-100'",
        f"{last[7:]} to end": f"model = 'shared-0' AND subject_id = '{last}'",
        "untrained": f"model = '{UNTRAINED}'",
    }
    with duckdb.connect(str(path), read_only=True) as connection:
        columns = {
            name: {
                (metric, control): value
                for metric, control, value in connection.execute(
                    "SELECT metric, CASE WHEN control LIKE 'haar:%' THEN 'haar' WHEN control LIKE 'scaled:%' THEN 'scaled' "
                    f"ELSE control END, avg(value) FROM measurements WHERE subject = 'rotation' AND {condition} GROUP BY ALL"
                ).fetchall()
            }
            for name, condition in groups.items()
        }
    rows = dict.fromkeys(key for column in columns.values() for key in column)
    lines = [f"| figure | control | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for metric, control in sorted(rows, key=lambda key: (key[0], key[1] != "none", key[1])):
        found = [columns[name].get((metric, control)) for name in columns]
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in found)
        lines.append(
            f"| {metric if control == 'none' else ''} | {'' if control == 'none' else control} | {shown} |"
        )
    return lines


def say(what: str) -> None:
    """A line on stderr with the time: the whole takes some minutes."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/family"))
    parser.add_argument("--steps", type=int, default=1500, help="of each dictionary's training")
    parser.add_argument("--sequences", type=int, default=4096)
    options = parser.parse_args()
    print("\n".join(table(build(options.folder, options.steps, options.sequences))))


if __name__ == "__main__":
    main()
