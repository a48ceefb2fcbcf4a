"""A language model of a few hundred kilobytes, made on the spot: made-up weights in a GGUF file that llama.cpp serves.

What it says is a soup of words, the same for the same seed. What is real is everything around it: the server's chat
template, grammars, its readers of tool calls and of reasoning, usage, slots, the prefix cache.

Lives here: the vocabulary, the weights, the template, the file's format. Not here: the server (`llama_server.py`).

How it works. The width 0 of every embedding is the same constant, so an output row's entry there is a bias: how likely
a token is wherever it may stand. Words are likely, the end of a turn comes after about forty of them, `</think>` after
eight in a model that thinks, single bytes practically never, what JSON needs a little. The other widths are random, so
that a word depends on the one before it. The only attention head looks for the template's `<tools>` tag; where it finds
one `<tool_call>` becomes likely, so the model calls tools if it has some, and else never. What a call looks like is the
server's grammar's affair.

Invariant: the same arguments make the same bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_WIDTH, _FEED_FORWARD, _CONTEXT = 64, 32, 65_536
_CONSTANT, _TOOLS_SEEN, _TOOLS_FOUND = 0, 1, 2  # what the first widths mean; random ones follow
_FIRST_RANDOM = 3
_NEVER = -30.0
_RARE = -9.0
_ANSWER_TOKENS, _THOUGHT_TOKENS = 40, 8

_WORDS = """
apple autumn bank bell bird blue boat book bread bridge bright brown calm candle castle cloud coast cold copper corner
crow dawn deep door dream dry dusk early east echo edge evening fern field fire fish flame flint floor fog forest
garden gate glass gold grain grass green grey harbour harvest hill honey horse house ink iron island ivy jade juniper
kettle lake lamp lantern leaf light lime linen lion long loud maple market meadow mill mist moon morning moss mountain
narrow nest night noon north oak oar old olive orchard otter owl paper path pearl pebble pine plain plum pond quiet
rain raven red reed river road robin rock roof rose rust sail salt sand sea seed shadow shell ship shore silver slow
small smoke snow soft song south spring star steel stone storm stream summer sun swan tall thorn thunder tide timber
tower town valley violet wall warm water wave west wheat white wide wild willow wind window winter wolf wood yellow
young the a of in and to is was by with under over near from
"""

# ChatML, with the tools and calls that models of the Hermes family are trained on; servers know both.
_TEMPLATE = """{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if first or tools -%}
{{- '<|im_start|>system\\n' + first -}}
{%- if tools -%}
{{- '\\n\\n# Tools\\n\\nSignatures within <tools></tools>, one call per <tool_call></tool_call>:\\n<tools>' -}}
{%- for tool in tools -%}
{{- '\\n' + (tool | tojson) -}}
{%- endfor -%}
{{- '\\n</tools>\\n<tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant' -}}
{%- if message.reasoning_content -%}
{{- '\\n<think>\\n' + message.reasoning_content + '\\n</think>\\n' -}}
{%- endif -%}
{%- if message.content -%}
{{- '\\n' + message.content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role != 'system' or not loop.first -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\nOPENING' -}}
{%- endif -%}"""


class _Vocabulary:
    """Byte-level BPE: every byte, every word with its space, and the prefixes of words by which merges reach them."""

    def __init__(self, thinks: bool) -> None:
        self.tokens: list[str] = []
        self.control: list[bool | None] = []  # None: an ordinary token
        self.biases: list[float] = []
        self.merges: list[str] = []
        self._letters = _byte_letters()
        words = dict.fromkeys(_WORDS.split())
        mass = float(len(words))
        likely = {**dict.fromkeys('"}', math.log(mass / 12)), **dict.fromkeys(",.:{[]0123456789", -1.0)}
        for number, letter in self._letters.items():
            self._add(letter, likely.get(chr(number), _RARE))
        for word in words:
            self._add_word(" " + word)
        closing = math.log(mass / _THOUGHT_TOKENS) if thinks else _NEVER
        self.end = self._add_special("<|im_end|>", math.log(mass / _ANSWER_TOKENS), control=True)
        self.padding = self._add_special("<|endoftext|>", _NEVER, control=True)
        self._add_special("<|im_start|>", _NEVER, control=True)
        self._add_special("<think>", _NEVER)
        self._add_special("</think>", closing)
        self.tools = self._add_special("<tools>", _NEVER)
        self.call = self._add_special("<tool_call>", _NEVER)
        self.call_end = self._add_special("</tool_call>", _NEVER)

    def _add(self, token: str, bias: float, control: bool | None = None) -> int:
        self.tokens.append(token)
        self.biases.append(bias)
        self.control.append(control)
        return len(self.tokens) - 1

    def _add_special(self, token: str, bias: float, control: bool = False) -> int:
        return self._add(token, bias, control)

    def _add_word(self, word: str) -> None:
        spelt = "".join(self._letters[byte] for byte in word.encode())
        for length in range(2, len(spelt) + 1):
            if spelt[:length] not in self.tokens:
                self._add(spelt[:length], _RARE)
                self.merges.append(f"{spelt[: length - 1]} {spelt[length - 1]}")
        self.biases[self.tokens.index(spelt)] = 0.0


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def _weights(words: _Vocabulary, seed: int) -> dict[str, Matrix]:
    random = np.random.default_rng(seed)
    count = len(words.tokens)
    embedding = random.normal(0.0, 0.3, (count, _WIDTH)).astype(np.float32)
    embedding[:, :_FIRST_RANDOM] = 0.0
    embedding[:, _CONSTANT] = 4.0
    embedding[words.tools, _TOOLS_SEEN] = 4.0
    # What the last norm makes of the constant, about.
    constant = 4.0 / math.sqrt((16.0 + (_WIDTH - _FIRST_RANDOM) * 0.09) / _WIDTH)
    output = random.normal(0.0, 0.15, (count, _WIDTH)).astype(np.float32)
    output[words.end :] = 0.0  # the tags are as likely after every word
    output[:, :_FIRST_RANDOM] = 0.0
    output[:, _CONSTANT] = np.array(words.biases, dtype=np.float32) / constant
    # Half of the answers call. A call's end has to win against another object in it.
    output[words.call, _TOOLS_FOUND] = (words.biases[words.end] - _NEVER) / constant
    output[words.call_end, _TOOLS_FOUND] = -_NEVER / constant

    # The head turns its widths by the position, the last pair slowest: there it asks, and there the tag answers.
    query, key, value, back = (np.zeros((_WIDTH, _WIDTH), dtype=np.float32) for _ in range(4))
    query[-2, _CONSTANT] = key[-2, _TOOLS_SEEN] = 2.5
    value[0, _TOOLS_SEEN] = 1.0
    # The tag's width behind the first norm, back to the constant's size.
    back[_TOOLS_FOUND, 0] = 4.0 / (4.0 / math.sqrt((32.0 + (_WIDTH - _FIRST_RANDOM) * 0.09) / _WIDTH))
    ones = np.ones(_WIDTH, dtype=np.float32)
    nothing = np.zeros((_FEED_FORWARD, _WIDTH), dtype=np.float32)
    return {
        "token_embd.weight": embedding,
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_q.weight": query,
        "blk.0.attn_k.weight": key,
        "blk.0.attn_v.weight": value,
        "blk.0.attn_output.weight": back,
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": nothing,
        "blk.0.ffn_up.weight": nothing,
        "blk.0.ffn_down.weight": nothing.T.copy(),
        "output_norm.weight": ones,
        "output.weight": output,
    }


# The format: a head, named values, the tensors' names and shapes, their numbers. Little-endian, tensors aligned.
_INTEGER, _SIGNED, _FLOAT, _BOOLEAN, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ALIGNMENT = 32
_NORMAL_TOKEN, _CONTROL_TOKEN, _TAG_TOKEN = 1, 3, 4


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    """One named value, its type first."""
    match value:
        case bool():
            return struct.pack("<I?", _BOOLEAN, value)
        case int():
            return struct.pack("<II", _INTEGER, value)
        case float():
            return struct.pack("<If", _FLOAT, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _SIGNED, len(value), *value)
        case [*texts]:
            return struct.pack("<IIQ", _ARRAY, _STRING, len(texts)) + b"".join(_string(str(text)) for text in texts)
    raise TypeError(type(value).__name__)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _file(values: dict[str, object], tensors: dict[str, Matrix]) -> bytes:
    described, numbers = [], b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        described.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(numbers)))
        numbers += _aligned(tensor.astype("<f4").tobytes())
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    named = (_string(name) + _value(value) for name, value in values.items())
    return _aligned(head + b"".join(named) + b"".join(described)) + numbers


def _kinds(control: Sequence[bool | None]) -> list[int]:
    return [_NORMAL_TOKEN if one is None else _CONTROL_TOKEN if one else _TAG_TOKEN for one in control]


def make_tiny_model(path: Path, *, thinks: bool = False, seed: int = 11) -> None:
    """Write the model. One that `thinks` begins every answer with reasoning."""
    words = _Vocabulary(thinks)
    values: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "tiny" + ("-think" if thinks else ""),
        "general.alignment": _ALIGNMENT,
        "llama.context_length": _CONTEXT,
        "llama.embedding_length": _WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": _FEED_FORWARD,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": _WIDTH,
        "llama.rope.freq_base": 1e6,
        "llama.vocab_size": len(words.tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": _kinds(words.control),
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.bos_token_id": words.padding,
        "tokenizer.ggml.eos_token_id": words.end,
        "tokenizer.ggml.padding_token_id": words.padding,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": _TEMPLATE.replace("OPENING", "<think>\\n" if thinks else ""),
    }
    path.write_bytes(_file(values, _weights(words, seed)))
