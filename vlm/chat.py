"""What is said to a model as token ids, and the chat template around it.

Questions and answers come from models, users and files: what looks like a control token in them is
text. A turn ends in <|im_end|> in every chat template that can be used here.
"""

import functools
import json
import re

import tokenizers

import common

END_OF_TURN = "<|im_end|>"  # of every chat template here; it is the last token of an answer


def encode(tokenizer, text: str) -> list[int]:
    """Encode a text of ours or of the chat template, in which <|im_end|> ends a turn.

    verbose: a tokenizer warns of texts that are longer than its model_max_length, which says
    nothing about the model; a video alone may be longer.
    """
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def encode_text(tokenizer, text: str, template: str) -> list[int]:
    """Encode a text with the template's text that follows it; only the latter has control tokens.

    Questions and answers come from models, users and files. `<|im_end|>` in one of them is written
    out in ordinary tokens: it must not end the turn. Any other text is encoded in one piece with
    the template, since its last letters may merge with what follows.

    Raises:
        InputError: if the tokenizer has no ordinary tokens for it
    """
    template_ids = list(encode_template(tokenizer, template))
    controls = find_controls(tokenizer, template_ids, template)
    ids = encode(tokenizer, text + template)
    if find_controls(tokenizer, ids, text + template) == controls:
        return ids

    written_out = text_backend(tokenizer).encode(text, add_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(written_out.tokens)
    unknown = tokenizer.unk_token  # ordinary here: what the tokenizer makes of unknown words
    found = [token for token in find_controls(tokenizer, ids, text) if token != unknown]
    if found:
        raise common.InputError(
            f"{found[0]} in {text!r} is a control token, which this tokenizer cannot encode as "
            "text; take it out"
        )
    return ids + template_ids


@functools.lru_cache(64)
def encode_template(tokenizer, template: str) -> tuple[int, ...]:
    """Encode a text of the chat template, of which there are few."""
    return tuple(encode(tokenizer, template))


def find_controls(tokenizer, ids: list[int], text: str) -> list[str]:
    """List the control tokens among the ids of a text, in order.

    The token of unknown words is one only where the text itself has it: some tokenizers give that
    role to <|endoftext|>, others give it to any word that they do not know.
    """
    controls = control_tokens(tokenizer)
    found = [controls[id] for id in ids if id in controls]
    return [token for token in found if token != tokenizer.unk_token or token in text]


@functools.lru_cache(4)
def control_tokens(tokenizer) -> dict[int, str]:
    """Find the tokens of a tokenizer that are no text: {id: token}.

    They are its special tokens, and of those that were added to it the ones that begin with a sign:
    <think>, [INST], ###Human:. Other added tokens are words, or blanks (the tiny model has the
    names of our error types).
    """
    controls = {}
    for id, token in tokenizer.added_tokens_decoder.items():
        if token.special or re.match(r"[\s\u2581]*[^\w\s\u2581]", token.content):
            controls[id] = token.content
    return controls


@functools.lru_cache(4)
def text_backend(tokenizer) -> tokenizers.Tokenizer:
    """Make the same tokenizer without its control tokens, for which it then sees letters.

    Its tokens are to be used, not its ids: where a control token is left out, the others move up.
    """
    if not tokenizer.is_fast:
        raise common.InputError(
            f"{tokenizer.name_or_path}: it has no tokenizer.json, without which control tokens "
            "such as <|im_end|> in a question cannot be encoded as text"
        )
    controls = control_tokens(tokenizer)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["added_tokens"] = [
        token for token in whole["added_tokens"] if token["id"] not in controls
    ]
    whole["truncation"] = None
    whole["padding"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def check_texts(tokenizer, texts: list[tuple[str, str]]):
    """Raise InputError if a text cannot be encoded as text.

    Words that its vocabulary has no token for are said in one line.

    texts: [(where it is from, for the message; the text), ...]
    """
    unknown = {}  # word: where it is first
    for where, text in texts:
        if half := common.find_surrogate(text):
            raise common.InputError(f"{where} has {half}, half of a character, which is no text")
        try:
            ids = encode_text(tokenizer, text, "")
        except common.InputError as error:
            raise common.InputError(f"{where}: {error}") from error
        if tokenizer.unk_token_id in ids:
            for word in find_unknown(tokenizer, text):
                unknown.setdefault(word, where)
    if unknown:
        tell_unknown(tokenizer, unknown)


def find_unknown(tokenizer, text: str) -> list[str]:
    """List the words of a text that a tokenizer has no token for; to most there are none."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
        if id == tokenizer.unk_token_id:
            found.append(text[start:end])
    return found


def tell_unknown(tokenizer, unknown: dict[str, str]):
    """Print a line about the words that a model does not know: {word: where it is first}."""
    words = list(unknown)
    listed = ", ".join(words[:10])
    if len(words) > 10:
        listed += f" and {len(words) - 10} more"
    print(
        f"{tokenizer.name_or_path} does not know these words, and reads each as the same unknown "
        f"one: {listed} ({unknown[words[0]]}). A small teaching model knows only the words that "
        "its tokenizer.json lists"
    )


def list_texts(path, groups: list, keys: tuple) -> list[tuple[str, str]]:
    """List the texts that rows have under these keys, for check_texts.

    groups: [(video, its rows), ...]; rows that were dropped are passed over
    """
    texts = []
    for _, rows in groups:
        for row in rows:
            if "dropped" not in row:
                texts += [(f"{path}, row {row['id']!r}, {key!r}", row[key]) for key in keys]
    return texts


# ------------------------------------------------------------------------------
# The chat template


def chat_parts(tokenizer) -> tuple[str, str]:
    """Split the chat template at the user's words.

    Returns:
        (text before the user's words, text between them and the answer)
    """
    return split_template(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(4)
def split_template(tokenizer, template: str) -> tuple[str, str]:
    """Do what chat_parts does, once for each template, which takes as long as to encode a text."""
    words = "[the words of the user]"  # no template has this in its own text
    messages = [{"role": "user", "content": words}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after = chat.split(words)
    return before, after


def check_chat_template(tokenizer):
    """Raise InputError if turns cannot be made by the chat template, or do not end in END_OF_TURN.

    dpo.py trains that token as the end of an answer, and decoding stops at it.
    """
    words = {"user": "[the words of the user]", "assistant": "[the words of the assistant]"}
    messages = [{"role": role, "content": text} for role, text in words.items()]
    try:
        template = tokenizer.chat_template
        if template is None:
            raise common.InputError("there is none")
        if isinstance(template, dict) and "default" not in template:
            names = ", ".join(sorted(template))
            raise common.InputError(f"there are several ({names}), and none is named default")
        chat = tokenizer.apply_chat_template(messages, tokenize=False)
        for role, text in words.items():
            if chat.count(text) != 1:
                raise common.InputError(
                    f"it does not show the words of the {role} once and as they are; content is "
                    "one text here, not a list of parts"
                )
            end = chat.partition(text)[2]
            if role == "user":
                end = end.lstrip()  # an answer is trained without such space, a question is not
            if not end.startswith(END_OF_TURN):
                raise common.InputError(f"a turn of the {role} does not end in {END_OF_TURN}")
        before, after = chat_parts(tokenizer)
        if "<think>" in after:
            raise common.InputError(
                "it opens <think>, so that a reply would begin with thoughts, which no stage takes "
                "out of an answer; take the model's Instruct variant"
            )
        trained = f"{before}{words['user']}{after}{words['assistant']}"
        if not chat.startswith(trained):
            raise common.InputError(
                "a generated answer would not begin where the assistant's words do; "
                "add_generation_prompt has to open its turn"
            )
    except Exception as error:  # of many kinds: a template is a program
        reason = " ".join(str(error).split())
        raise common.InputError(f"the chat template cannot be used: {reason}") from error
