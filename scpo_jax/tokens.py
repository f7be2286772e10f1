"""The texts of a run as tokens: stage prepare makes them, once, and the later stages read them."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from scpo_jax import score
from scpo_jax.data import encoding, preferences
from scpo_jax.data.encoding import Prompt, Text
from scpo_jax.workdir import Workdir


def texts_of(rows: list[dict]) -> dict[str, tuple[Prompt, str]]:
    """text key -> (prompt, response) of both sides of pairs."""
    prompts = [preferences.prompt_of(row) for row in rows]
    sides = [(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected")]
    return score.distinct_texts(*sides)


def encode(config, tokenizer, reads: str, texts: dict[str, tuple[Prompt, str]], training: bool) -> dict[str, Text]:
    """text key -> encoded text, as it is trained on or as it is scored by a model that `reads` "first" or "last"."""
    if not texts:
        return {}
    prompts, responses = zip(*texts.values(), strict=True)
    form = encoding.form(reads, config.model.encoding)
    function = encoding.encode_for_training if training else encoding.encode_for_scoring
    encoded = function(tokenizer, prompts, responses, config.model.max_length, form)
    return dict(zip(texts, encoded, strict=True))


def encode_all(config, tokenizer, reads: str, rows: list[dict]) -> dict[str, dict[str, Text]]:
    """File name -> text key -> encoded text, of all texts of pairs: one file unless training encodes in its own way."""
    texts = texts_of(rows)
    return {
        name_of(config, own): encode(config, tokenizer, reads, texts, own)
        for own in (True, False)[: 1 + differs(config)]
    }


def differs(config) -> bool:
    """Whether texts are encoded in one way for training and in another for scoring."""
    return config.model.encoding != "pair"


def name_of(config, training: bool) -> str:
    """The file that holds the texts as they are trained on, or as they are scored."""
    return "tokens.parquet" if training or not differs(config) else "tokens_scored.parquet"


def write(workdir: Workdir, encoded: dict[str, dict[str, Text]]) -> None:
    """Writes what `encode_all` gave."""
    for name, texts in encoded.items():
        ends = pa.array(np.cumsum([0, *(len(text.input_ids) for text in texts.values())]), pa.int32())
        flat = {
            column: np.concatenate([np.zeros(0, np.int32), *(getattr(text, column) for text in texts.values())])
            for column in ("input_ids", "token_type_ids")
        }
        columns = {column: pa.ListArray.from_arrays(ends, pa.array(values)) for column, values in flat.items()}
        cut = pa.array([text.cut for text in texts.values()], pa.int32())
        preferences.write_table(pa.table({"key": list(texts), **columns, "cut": cut}), workdir.data / name)


def read(config, workdir: Workdir, keys: Iterable[str], training: bool) -> dict[str, Text]:
    """text key -> encoded text of these keys, in their order."""
    table = preferences.read_table(workdir.data / name_of(config, training))
    place, cut = {key: i for i, key in enumerate(table["key"].to_pylist())}, table["cut"].to_pylist()
    lists = [table[column].combine_chunks() for column in ("input_ids", "token_type_ids")]
    starts, (ids, types) = lists[0].offsets.to_numpy(), (column.values.to_numpy() for column in lists)

    def text(i: int) -> Text:
        return Text(ids[starts[i] : starts[i + 1]], types[starts[i] : starts[i + 1]], cut[i])

    return {key: text(place[key]) for key in keys}
