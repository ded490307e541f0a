#!/usr/bin/env bash
# Everything that signarium measures of one small model, then two toy models of brackets and the rotation between them.
# `make demo-full` runs it: about twenty minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/common.sh
FOLDER=${FOLDER:-build/demo-full}
TOKENS=${DEMO_TOKENS:-20000}
mkdir -p "$FOLDER"
export SIGNARIUM_DB=$FOLDER/demo.duckdb
TEXT=$FOLDER/python-topics.txt
"$BIN/python" -c "from pydoc_data.topics import topics; print('\n'.join(topics[k] for k in sorted(topics)))" > "$TEXT"

say "SmolLM2 reads its vocabulary and $TOKENS tokens of Python's reference: codes, features, neurons and writers at five sites."
run ingest "$MODEL" --name SmolLM2-135M --text "$TEXT" --max-tokens "$TOKENS" --stages all
say "What is in the file."
run sql "SELECT model, site, subject, centre, n, indexed FROM code_sets ORDER BY subject, site, centre"
say "How much a bit tells, and how often one dimension is the largest of all."
run sql "SELECT site, round(avg(entropy), 3) AS bit_entropy, round(max(argmax_share), 3) AS loudest_dim_share FROM dimensions GROUP BY site ORDER BY site"
say "Neighbours of two tokens of the vocabulary, and of a text."
run nearest 'type:" king"' -k 8
run nearest 'type:" Monday"' -k 8
run nearest "raise an exception" --in states --where "NOT is_first" -k 8
say "Features that survive their controls, one of them in full, and a sentence read by all of them."
run features list --kind category --survives --limit 10
run features show european_country --site resid_post.5 --centre mean
run features read "The king of France sailed to Norway in May and ate cold fish."
say "Neurons that write a feature, and one neuron."
run nearest feature:calendar --site resid_post.29 --centre mean --in neurons -k 8
run neurons show 29/305
say "What turning a feature's signs does to the next token, beside its controls."
run flip calendar --site resid_post.29 --centre mean --text "$TEXT"
say "Claim by claim: published, here, control, verdict."
run evidence

say "Two seeds of a toy model that reads brackets, and the rotation that carries the states of one to the other."
export SIGNARIUM_DB=$FOLDER/brackets.duckdb SIGNARIUM_PLUGINS=examples/dyck
BRACKETS=$FOLDER/brackets.jsonl
"$BIN/python" -m examples.dyck --text 1500 --output "$BRACKETS" > /dev/null
for seed in shared-0 shared-1; do
  run ingest "examples/dyck/family/$seed" --text "$BRACKETS" --stages types,states --sites 'resid_post.0;resid_mid.1' --max-tokens 5000
done
run align shared-0 shared-1 --text "$BRACKETS" --steer resid_mid.1
run rotations show shared-0 shared-1 --site resid_mid.1
run nearest "([{}" --model shared-0 --across shared-1 --site resid_mid.1 -k 5

say "The catalogues are $FOLDER/demo.duckdb and $SIGNARIUM_DB. Yours next: $BIN/signarium ingest MODEL --text PATH"
