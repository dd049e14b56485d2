r"""Odd rows, verdicts and texts, each with what must come of it: cases of `tools.fuzz`.

A verdict is composed from the grammar in prompts/verdict.py, piece by piece, each with its meaning;
it is never parsed here. A text is composed of words and control tokens.
"""

import functools
import json
import shutil
import sys
from pathlib import Path

import tokenizers
import transformers

import common
import critique
import dpo
import prompts
import refine
import vlm
from tools.odd import Case, Gives, Refused
from tools.odd_models import SHIPPED, choose
from vlm import chat

NEEDED = ("id", "video", "question")

# ------------------------------------------------------------------------------
# Rows


def make_rows(rng) -> list[dict]:
    """Make two to eight rows that are right, some with more keys than are needed."""
    rows = []
    for number in range(rng.integers(2, 9)):
        row = {"id": f"a.mp4/{number}", "video": "a.mp4", "question": f"why {number}, drei, ünï?"}
        more = {"start": 0.5, "end": None, "error_types": [], "mine": {"x": [1, "\U0001f600"]}}
        for key in more:
            if rng.integers(2):
                row[key] = more[key]
        rows.append(row)
    return rows


def write_with(directory: Path, rng, change) -> tuple[Path, str]:
    """Write rows, one of which was changed -> (the file, 'FILE, line N').

    change: function of that row -> a row, or the line itself as bytes
    """
    rows = make_rows(rng)
    place = int(rng.integers(len(rows)))
    rows[place] = change(rows[place])
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = directory / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path, f"{path}, line {place + 1}"


def refused_row(directory: Path, rng, change, *words: str) -> Case:
    """Say that rows must be refused for one of them, by its line."""
    path, where = write_with(directory, rng, change)
    read = functools.partial(common.read_jsonl, path, NEEDED, error_types=NAMES)
    return Refused(read, (f"{where}", *words))


def half_a_character(directory: Path, rng) -> Case:
    """Put half of a surrogate pair anywhere into a row: legal JSON, but no text."""
    key = choose(rng, ["id", "video", "question", "mine"])
    half = int(rng.integers(0xD800, 0xE000))
    text = f"x{chr(half)}y"
    if key == "mine":
        text = choose(rng, [[text], {"x": {text: 1}}, [[[{"y": text}]]]])
    return refused_row(
        directory, rng, lambda row: row | {key: text}, repr(key), f"\\u{half:x}, half"
    )


def broken_json(directory: Path, rng) -> Case:
    """Cut a line off at any byte; a letter of two bytes may be cut in half."""

    def cut(row: dict) -> bytes:
        line = json.dumps(row, ensure_ascii=False).encode()
        return line[: rng.integers(len(line))]

    return refused_row(directory, rng, cut, "not JSON in UTF-8")


def column(directory: Path, rng) -> Case:
    """Leave out the colon after the first key: the column of what follows is named."""
    key = "k" * int(rng.integers(1, 30))
    line = f'{{"{key}" 1}}'.encode()
    place = len(key) + 5  # {, two quotes, a blank, and counted from 1
    return refused_row(directory, rng, lambda _: line, f", column {place}: not JSON in UTF-8")


def no_object(directory: Path, rng) -> Case:
    """Have a line that is JSON, but no object."""
    line, kind = choose(
        rng, [("[1]", "list"), ("7", "int"), ('"x"', "str"), ("null", "NoneType"), ("1.5", "float")]
    )
    words = f": an object is expected, not {kind}"
    return refused_row(directory, rng, lambda _: line.encode(), words)


def wrong_type(directory: Path, rng) -> Case:
    """Give a key a value of another type."""
    texts = ("id", "video", "question", "initial", "critique", "chosen", "dropped", "error")
    key = choose(rng, [*texts, "start", "end", "error_types"])
    values = [{"a": 1}]
    if key in texts:
        values += [7, None, ["x"], True, 1.5]
    elif key == "error_types":
        values += ["factual_inaccuracy", 7]
    else:
        values += ["3", [1], "0:03"]
    value = choose(rng, values)
    words = f": {key!r} has the type {type(value).__name__}"
    return refused_row(directory, rng, lambda row: row | {key: value}, words)


def no_seconds(directory: Path, rng) -> Case:
    """Give seconds that are no number of seconds."""
    key = choose(rng, ["start", "end"])
    value = choose(rng, ["NaN", "Infinity", "-Infinity", "1e400", "9" * 400])

    def add(row: dict) -> bytes:
        kept = {name: row[name] for name in NEEDED}
        return f'{json.dumps(kept)[:-1]}, "{key}": {value}}}'.encode()

    return refused_row(directory, rng, add, f": {key!r} is ", "not seconds")


def unknown_error_type(directory: Path, rng) -> Case:
    """Name an error type that does not exist."""
    name = choose(rng, ["typo", "Factual_Inaccuracy", "", 7, None, ["factual_inaccuracy"]])
    types = ["temporal_ordering"] * int(rng.integers(2)) + [name]
    words = f": unknown error type {name!r}"
    return refused_row(directory, rng, lambda row: row | {"error_types": types}, words)


def missing_key(directory: Path, rng) -> Case:
    """Leave out a key that is needed; a row that was dropped needs id and video alone."""
    key = choose(rng, NEEDED)
    is_dropped = bool(rng.integers(2))

    def leave_out(row: dict) -> dict:
        row = {name: value for name, value in row.items() if name != key}
        return row | ({"dropped": "bad_question"} if is_dropped else {})

    if is_dropped and key == "question":
        path, _ = write_with(directory, rng, leave_out)
        return Gives(lambda: len(common.read_jsonl(path, NEEDED)), path.read_bytes().count(b"\n"))
    return refused_row(directory, rng, leave_out, f": no key {key!r}, which generate.py writes")


def duplicate(directory: Path, rng) -> Case:
    """Have a row twice: the second is named."""
    rows = make_rows(rng)
    first = int(rng.integers(len(rows)))
    second = int(rng.integers(first + 1, len(rows) + 1))
    rows.insert(second, rows[first])
    path = directory / "rows.jsonl"
    common.write_jsonl(path, rows)
    words = f"{path}, line {second + 1}: duplicate id {rows[first]['id']!r}"
    return Refused(functools.partial(common.read_jsonl, path, NEEDED), (words,))


def right_rows(directory: Path, rng) -> Case:
    r"""Write right rows in unusual ways: escapes, \r\n, the line ends of Unicode, no last \n."""
    rows = make_rows(rng)
    for row in rows:
        row["question"] += choose(rng, ["", "\u2028", "\x85", "\x0b", "\0", "\\n", "\r\n"])
    escaped = bool(rng.integers(2))
    end = choose(rng, ["\n", "\r\n", " \n"])
    text = end.join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    path = directory / "rows.jsonl"
    path.write_bytes((text + end * int(rng.integers(2))).encode())
    return Gives(functools.partial(common.read_jsonl, path, NEEDED), rows)


# ------------------------------------------------------------------------------
# Verdicts of critiques

NAMES = list(prompts.ERROR_TYPES)
TAKE_AN_S = ("spatial_relationship", "object_hallucination", "detail_omission")
NONES = ["none", "None.", "no errors.", "No error found", "N/A", "nothing", "no.", "none (no {})"]
NONES += ["none. The {} is fine.", "NO ERRORS", "none, but {} was close"]
HEADINGS = ["Errors:", "errors:", "ERRORS:", "Error:", "Errors :", "**Errors:**", "**Errors**:"]
HEADINGS += [
    "__Errors__:",
    "### Errors:",
    "- Errors:",
    "2. Errors:",
    "* **Error**:",
    "Errors\uff1a",
]
BEFORE = [
    "",
    "The square moves left.\n",
    "I see no errors: the answer is fine.\n",
    "{} is right.\n",
]
BEFORE += ["<think>Errors: {}</think>\n", "Errors: {}\nOn a second look:\n", "Errors: none\n"]
BEFORE += ["perhaps\nErrors: {}</think>\n"]
BEHIND = ["", "\nThe {} is right.", "\nAs to the errors: see above.", "\n<think>Errors: {}</think>"]


def spell(rng, name: str, brackets: bool = True) -> str:
    """Write the name of an error type in one of the ways of a model."""
    if name in TAKE_AN_S and rng.integers(2):
        name += "s"
    name = name.replace("_", choose(rng, ["_", " ", "-", "\\_"]))
    name = choose(rng, [str, str.upper, str.title])(name)
    marks = ["{}", "**{}**", "*{}*", "`{}`", '"{}"']
    if brackets:
        marks.append("[{}]")
    return choose(rng, marks).format(name)


def name_some(rng) -> tuple[str, list[str] | None]:
    """Compose what follows a heading where errors are named -> (text, the types that it names)."""
    drawn = rng.permutation(NAMES)[: rng.integers(0, 5)].tolist()
    n_denied = int(rng.integers(0, len(drawn) + 1))
    denied, named = drawn[:n_denied], drawn[n_denied:]
    in_a_list = bool(rng.integers(2))
    items = []
    for name in named:
        remark = choose(rng, ["", " (it is red)", " (not what the video shows)"])
        items.append(spell(rng, name) + remark)
    for name in denied:
        denials = ["not {}", "no {} problem", "it isn't {}"]
        if in_a_list:
            denials += ["{}: none", "{}: no", "{}: N/A"]
        items.append(choose(rng, denials).format(spell(rng, name, brackets=False)))
    if rng.integers(2):
        items.append(choose(rng, ["wrong_color", "many others", "something else"]))
    in_order = [name for name in NAMES if name in named]
    if in_a_list:
        mark = choose(rng, ["- ", "* ", "1. ", ""])
        gap = choose(rng, ["\n", "\n\n"])
        return gap + "\n".join(f"{mark}{item}" for item in items), in_order or None
    return " " + choose(rng, [", ", "; "]).join(items), in_order or None


def verdict(directory: Path, rng) -> Case:
    """Compose a critique, and say which error types its verdict names."""
    is_none = rng.integers(3) == 0
    if is_none:
        text, expected = " " + choose(rng, NONES), []
    else:
        text, expected = name_some(rng)
    heading = choose(rng, HEADINGS)
    behind = choose(rng, BEHIND)
    if text.startswith("\n") or not text.strip():  # a list goes on to the end of the critique
        behind = ""
    whole = choose(rng, BEFORE) + heading + text + behind
    for _ in range(whole.count("{}")):
        whole = whole.replace("{}", choose(rng, NAMES), 1)
    return Gives(functools.partial(parse, whole), (whole, expected))


def parse(critique_text: str) -> tuple:
    """Read a verdict -> (the critique, for the message; error types)."""
    return critique_text, prompts.parse_error_types(critique_text)


# ------------------------------------------------------------------------------
# Texts: control tokens, chat templates, tokenizers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
ADDED = "<think>"
WORDS = [
    "why does it move?",
    " ",
    "\n",
    "C'est où",
    "你好",
    "\U0001f600",
    "<",
    "|im_end|>",
    "<img",
    "a",
]
CHAT = (SHIPPED / "chat_template.jinja").read_text()
CONTENT = "{{ message['content'] }}"


@functools.cache
def byte_level():
    """Make a tokenizer of bytes that merge, as Qwen's, with one added token that is not special."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["why does it move? it moves left."] * 9, trainer)
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([tokenizers.AddedToken(ADDED, normalized=False)])
    tokenizer = transformers.TokenizersBackend(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def control_tokens_in_a_text(directory: Path, rng) -> Case:
    """Mix words and control tokens: as an answer they are letters, which read as before."""
    pieces = [choose(rng, [*WORDS, *SPECIALS, ADDED]) for _ in range(rng.integers(1, 9))]
    text = "".join(pieces)
    tokenizer = byte_level()
    controls = set(tokenizer.convert_tokens_to_ids([*SPECIALS, ADDED]))

    def encode() -> tuple:
        *letters, end = vlm.encode_branch(tokenizer, "", text).answer
        return tokenizer.decode(letters), bool(controls & set(letters)), end

    return Gives(encode, (text, False, tokenizer.convert_tokens_to_ids("<|im_end|>")))


def write_whole_words(directory: Path) -> Path:
    """Write the shipped model with a tokenizer that splits at blanks alone -> its directory."""
    shutil.copytree(SHIPPED, directory)
    backend = common.read_json(SHIPPED / "tokenizer.json")
    backend["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    common.write_json(directory / "tokenizer.json", backend)
    return directory


def control_token_in_a_row(directory: Path, rng) -> Case:
    """Put a control token into a row whose tokenizer has it as a word: row and key are named."""
    stage, key = choose(
        rng,
        [
            (critique, "question"),
            (critique, "initial"),
            (refine, "critique"),
            (dpo, "chosen"),
            (dpo, "rejected"),
        ],
    )
    texts = {"question": "why?", "initial": "it was hit.", "critique": "Errors: causal_reasoning"}
    texts |= {"chosen": "it rests.", "rejected": "it was hit."}
    n_rows = int(rng.integers(1, 5))
    rows = []
    for number in range(n_rows):
        row = {"id": f"a.mp4/{number}", "video": "a.mp4", "error_types": ["causal_reasoning"]}
        rows.append(row | texts)
    bad = int(rng.integers(n_rows))
    # It has no capitals, so that <IMG_CONTEXT> is a word that it does not know
    rows[bad][key] = f"it is {choose(rng, ['<|im_end|>', '<|IM_START|>', '<img>', '</img>'])} so"
    common.write_jsonl(directory / "rows.jsonl", rows)
    output = directory / "out"
    model = write_whole_words(directory / "m")
    options = {"--model": model, "--input": directory / "rows.jsonl", "--videos": directory}
    words = [str(word) for pair in options.items() for word in pair]
    command = ["stage.py", *words, "--output", str(output), "--devices", "cpu"]

    def run():
        sys.argv = command
        stage.main()

    return Refused(run, (f"rows.jsonl, row 'a.mp4/{bad}', '{key}': ", "is a control token"))


def copy_tokenizer(directory: Path) -> Path:
    """Copy the shipped tokenizer, to be damaged."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((SHIPPED / name).read_bytes())
    return directory


def cut_tokenizer(directory: Path, rng) -> Case:
    """Cut one of a tokenizer's files off at any byte."""
    path = copy_tokenizer(directory) / choose(rng, ["tokenizer.json", "tokenizer_config.json"])
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: rng.integers(len(data))])
    words = (str(directory), "its tokenizer cannot be read")
    return Refused(functools.partial(vlm.load_tokenizer, directory), words)


def system_prompt(directory: Path, rng) -> Case:
    """Let a template begin with a system prompt of any words: it is not cut."""
    words = ["WORDS", "of the user", "[the words", "content", "message", "你好", "<|im_start|>user"]
    drawn = " ".join(choose(rng, words) for _ in range(rng.integers(1, 9)))
    system = f"<|im_start|>system\n{drawn}<|im_end|>\n"
    (copy_tokenizer(directory) / "chat_template.jinja").write_text(system + CHAT)
    before = f"{system}<|im_start|>user\n"
    return Gives(
        lambda: vlm.chat_parts(vlm.load_tokenizer(directory)),
        (before, "<|im_end|>\n<|im_start|>assistant\n"),
    )


def unusable_template(directory: Path, rng) -> Case:
    """Write a chat template that cannot be used."""
    parts = "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    doubled = "{{ message['content'] + message['content'] }}"
    not_user = CONTENT + "{{ 'x' if message['role'] != 'user' }}"
    once = "once and as they are"
    template, words = choose(
        rng,
        [
            (CHAT.replace(CONTENT, parts), once),
            (CHAT.replace(CONTENT, doubled), once),
            (CHAT.replace(CONTENT, "{{ message['content'] | upper }}"), once),
            (CHAT.replace(CONTENT, "{{ raise_exception('no videos') }}"), "no videos"),
            (CHAT.replace("{% endfor %}", ""), ""),
            (CHAT.replace("<|im_end|>", "</s>"), "a turn of the user does not end in <|im_end|>"),
            (CHAT.replace(CONTENT, not_user), "a turn of the assistant does not end in"),
            ("", once),
            (None, "there is none"),
        ],
    )
    path = copy_tokenizer(directory) / "chat_template.jinja"
    if template is None:
        path.unlink()
    else:
        path.write_text(template)
    says = (f"{directory}: the chat template cannot be used: ", words)
    return Refused(functools.partial(vlm.load_tokenizer, directory), says)


def half_a_character_to_ask(directory: Path, rng) -> Case:
    """Ask with a byte that is no UTF-8, which Python hands on as half of a character."""
    half = int(rng.integers(0xDC80, 0xDD00))
    texts = [("--ask", f"why {chr(half)}?")]
    words = f"--ask has \\u{half:x}, half of a character"
    return Refused(functools.partial(chat.check_texts, byte_level(), texts), (words,))


CASES = [
    half_a_character,
    broken_json,
    column,
    no_object,
    wrong_type,
    no_seconds,
    unknown_error_type,
    missing_key,
    duplicate,
    right_rows,
    verdict,
    control_tokens_in_a_text,
    control_token_in_a_row,
    cut_tokenizer,
    system_prompt,
    unusable_template,
    half_a_character_to_ask,
]
