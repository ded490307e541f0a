"""How llama.cpp cuts text before it merges bytes, by the names that `tokenizer.ggml.pre` of a GGUF file may have.

Each name stands for regular expressions that are applied one after another: what matches stands alone, and the rest between
two matches as well (`llama-vocab.cpp`, `llm_tokenizer_bpe`).
"""

from __future__ import annotations

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(after: str, digits: str) -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return rf"{before}{_UPPER}*{_LOWER}+{after}|{before}{_UPPER}+{_LOWER}*{after}|{digits}|{_CASED_REST}"


_RANGES = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A "
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D "
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F "
    "104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Letters with upper and lower case, in hexadecimal: composed characters would not survive every editor."""
_DEEPSEEK_LETTERS = "".join("-".join(chr(int(end, 16)) for end in one.split("-")) for one in _RANGES.split())
_CJK = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Cut:
    """`splits` are the regular expressions; `whole`: a piece that is a token stays whole whatever the merges say; `bos`: a text
    begins with BOS where the file does not say otherwise."""

    splits: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_GROUPS: dict[str, Cut] = {
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Cut((_LLAMA3,), True, True),
    "dbrx smaug-bpe chatglm-bpe glm4": Cut((_LLAMA3,)),
    "deepseek-llm": Cut(
        ("[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": Cut(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm": Cut(
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
            r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
        )
    ),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Cut((r"\p{N}", _GPT2)),
    "gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code gigachat roberta-bpe "
    "exaone4 trillion granite-docling": Cut((_GPT2,)),
    "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan kormo f2llmv2": Cut((_QWEN2,)),
    "qwen35": Cut((_QWEN35,)),
    "bloom poro-chat gpt3-finnish": Cut((_BLOOM,)),
    "viking": Cut((_BLOOM, r"\p{N}")),
    "tekken": Cut((_cased("", r"\p{N}"),), True, True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Cut((_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),)),
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}  # fmt: skip
CUTS: dict[str, Cut] = {name: cut for names, cut in _GROUPS.items() for name in names.split()}
