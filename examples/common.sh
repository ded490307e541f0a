# What the two demos share. Source it from the root of the repository.
BIN=${BIN:-.venv/bin}
MODEL=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}

# say TEXT: one line about what comes next.
say() { printf '\n# %s\n' "$1"; }

# run WORDS: shows a command of signarium as one would type it, then runs it.
run() {
  local word shown="\$ signarium"
  for word; do
    case $word in
      *\'*) shown+=" \"$word\"" ;;
      *[!A-Za-z0-9_./:=,-]*) shown+=" '$word'" ;;
      *) shown+=" $word" ;;
    esac
  done
  printf '%s\n' "$shown"
  "$BIN/signarium" "$@"
}
