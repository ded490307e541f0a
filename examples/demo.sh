#!/usr/bin/env bash
# The first look at signarium: one small model, a few hundred sentences, then its vocabulary. `make demo` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/common.sh
export SIGNARIUM_DB=${SIGNARIUM_DB:-build/demo/demo.duckdb}
mkdir -p "$(dirname "$SIGNARIUM_DB")"
# One site, at a third of the depth: a pass ends there, which is what makes this short.
SITE=resid_post.9

say "SmolLM2 reads 398 sentences; the signs of its hidden states after block 9 go into $SIGNARIUM_DB."
run ingest "$MODEL" --name SmolLM2-135M --text examples/sentences.jsonl --stages states --sites $SITE

say "The same word has other signs in other sentences: in how many of the 576 dimensions do two occurrences differ?"
run sql "SELECT a.token, count(*) AS pairs, min(hamming(a.code, b.code)) AS least, round(avg(hamming(a.code, b.code))) AS mean,
  max(hamming(a.code, b.code)) AS most FROM states a JOIN states b ON a.token = b.token AND a.state_id < b.state_id
  WHERE a.token IN (' bank', ' match', ' spring', ' bow') GROUP BY a.token ORDER BY mean DESC"

say "Where does \"bank\" mean what it means here? The nearest states by their signs are all at the edge of a river."
run nearest "We walked along the bank" --in states --where "token = ' bank'" -k 5

say "And the nearest to this one all have to do with money."
run nearest "She took her money to the bank" --in states --where "token = ' bank'" -k 5

say "Now every token of the vocabulary, alone: 49,152 of them, and features read from their signs."
run ingest "$MODEL" --name SmolLM2-135M --stages types,features --sites $SITE --seeds 50

say "The tokens nearest to \" king\"."
run nearest 'type:" king"' -k 6

say "Categories of words, by how well a few signs find words held out (0.5 is chance). None survives here: rotated axes do as well."
run features list --kind category --centre mean --limit 8

say "A new sentence, token by token: the categories that its signs agree with most. Small words have noise alone."
run features read "The king of France sailed to Norway in May and ate cold fish."

say "A published figure for that, what comes out here, and each control that could explain it away."
run sql "SELECT published, round(value, 3) AS here, control, round(control_value, 3) AS control_value, verdict
  FROM evidence WHERE claim_id = '1.3' AND verdict <> 'not measured' ORDER BY here DESC, control_value DESC LIMIT 6"

say "Try next, on the catalogue that this left:"
cat <<END
  export SIGNARIUM_DB=$SIGNARIUM_DB
  $BIN/signarium nearest "They lost the football match" --in states --where "token = ' match'" -k 8
  $BIN/signarium features show european_country --centre mean
  $BIN/signarium evidence
  $BIN/signarium ingest $MODEL --name SmolLM2-135M --stages neurons,writers --sites $SITE
END
say "Left out to be short: four of the five default sites, 97% of the seeds that features are discovered from, the neurons that write
them, flips, rotations between models, and a text long enough for figures in context. \`make demo-full\` has them all."
