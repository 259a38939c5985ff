# SPDX-License-Identifier: MIT
"""Configs from foreign files: accepted, or refused with one ValueError, whatever JSON they hold."""

import json
import math

import pytest

from jaxgen import fields

TABLE = {
    "heads": fields.integer(8, 1, 64),
    "width": fields.integer(64, 8, 4096, multiple_of=8),
    "widths": fields.items((64, 128), fields.integer(64, 8, 4096), most=4),
    "layers": fields.either(
        2, fields.integer(2, 1, 9), fields.items((), fields.integer(2, 1, 9), most=4)
    ),
    "eps": fields.number(1e-5, 1e-12, 0.1),
    "size": fields.optional(fields.integer(None, 1, 1024)),
    "act": fields.choice("silu", "silu", "gelu", None),
    "factor": fields.choice(1, 1),
    "upcast": fields.flag(False),
}
RULES = (
    fields.Rule(
        lambda v: v["width"] % v["heads"] == 0, "width must be a multiple of heads"
    ),
)  # fmt: skip

NESTED: list = []
for _ in range(50_000):
    NESTED = [NESTED]
JSON_VALUES = [
    None, True, False, 0, -1, 1, 2.0, 1.5, math.nan, math.inf, -math.inf, 10**400, -(10**5000),
    "", "silu", "x" * 100_000, "\x1b[2J\u202e\n", [], [[]], [64, None], [True], [math.nan],
    [64] * 100_000, {}, {"a": {"b": 1}}, {"x" * 100_000: 1}, NESTED,
]  # fmt: skip


def check(**config):
    return fields.check(TABLE, config, "unet/config.json", RULES)


def test_absent_keys_take_their_defaults_and_present_ones_stay():
    assert check() == {key: field.default for key, field in TABLE.items()}
    config = {"heads": 4, "layers": [1, 2], "size": None, "act": None, "factor": 1.0, "other": []}
    assert check(**config) == {**check(), **{k: v for k, v in config.items() if k != "other"}}


@pytest.mark.parametrize("key", TABLE)
@pytest.mark.parametrize("number", range(len(JSON_VALUES)))
def test_any_json_value_is_accepted_or_refused_in_one_short_line(key, number):
    value = JSON_VALUES[number]
    try:
        values = check(**{key: value})
    except ValueError as error:
        message = str(error)
        assert message.startswith("unet/config.json has values that are wrong or not impl")
        assert len(message) < 300
        assert message.isprintable()
    else:
        assert values[key] is value
        json.dumps(value, allow_nan=False)  # nothing that is not finite gets through


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 0}, "heads=0, expected an integer from 1 to 64$"),
        ({"heads": True}, "heads=True, expected an integer"),
        ({"heads": 2.0}, r"heads=2\.0, expected an integer"),
        ({"heads": 10**400}, "heads=1000.*, expected an integer from 1 to 64$"),
        ({"width": 12}, "width=12, expected a multiple of 8 from 8 to 4096$"),
        ({"widths": 64}, "widths=64, expected a list of 1 to 4 entries, each an integer from 8"),
        ({"widths": []}, r"widths=\[\], expected"),
        ({"widths": [64] * 5}, "a list of 1 to 4 entries"),
        ({"widths": [64, True]}, r"widths=\[64, True\], expected"),
        ({"layers": [[1]]}, "integer from 1 to 9, or a list of 1 to 4 entries, each an integer"),
        ({"eps": math.nan}, "eps=nan, expected a number from 1e-12 to 0.1"),
        ({"eps": False}, "eps=False, expected a number"),
        ({"size": 0}, "size=0, expected an integer from 1 to 1024, or null"),
        ({"act": "relu"}, "act='relu', expected 'silu', 'gelu' or None"),
        ({"factor": True}, "factor=True, expected 1$"),
        ({"upcast": None}, "upcast=None, expected true or false"),
        ({"heads": 0, "width": 1}, r"heads=0, expected .* \| width=1, expected"),
        ({"width": 40, "heads": 16}, "implemented: width must be a multiple of heads$"),
    ],
)
def test_the_message_names_key_value_and_what_was_expected(config, message):
    with pytest.raises(ValueError, match=message):
        check(**config)


def test_a_config_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match="is a list; expected a mapping"):
        fields.check(TABLE, [], "unet/config.json")


def test_many_faults_are_counted_and_a_dozen_named():
    table = {f"k{i}": fields.flag(False) for i in range(20)}
    with pytest.raises(ValueError, match="k11=1, expected true or false | and 8 more$"):
        fields.check(table, dict.fromkeys(table, 1), "config.json")


def test_foreign_text_is_quoted_short_and_escaped():
    assert fields.shown("a\n\x1b[2J\u202e") == r"'a\n\x1b[2J\u202e'"
    assert len(fields.shown("x" * 100_000)) <= 80
    assert len(fields.shown([["\x00" * 1000] * 1000])) <= 80
