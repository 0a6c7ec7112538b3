import numpy as np
import pytest
from PIL import ImageFont

from models.zoo.textlines import TextLine, draw_lines
from models.zoo.texts import SPLITS, WORDS, part_of, random_text
from qgraph.errors import UsageError

FONTS = [ImageFont.load_default]  # Pillow's own font: no network


def draw(count, split="calibration", seed=0):
    return draw_lines(count, split=split, fonts=FONTS, seed=seed)


def test_one_seed_gives_one_set_of_lines():
    for first, second in zip(draw(8), draw(8), strict=True):
        assert first.text == second.text
        np.testing.assert_array_equal(first.pixels, second.pixels)


def test_another_seed_gives_other_lines():
    assert [line.text for line in draw(8)] != [line.text for line in draw(8, seed=1)]


def test_the_first_lines_do_not_depend_on_the_count():
    for few, many in zip(draw(4), draw(9), strict=False):
        assert few.text == many.text
        np.testing.assert_array_equal(few.pixels, many.pixels)


def test_no_text_is_in_both_parts_or_twice_in_one():
    texts = {
        split: [line.text for seed in (0, 1) for line in draw(60, split, seed)] for split in SPLITS
    }
    assert not set(texts["calibration"]) & set(texts["evaluation"])
    assert len({line.text for line in draw(100)}) == 100
    for split, found in texts.items():
        assert {part_of(text) for text in found} == {split}


def test_lines_are_48_high_with_ink_and_paper():
    for line in draw(20):
        assert line.pixels.dtype == np.uint8 and line.pixels.shape[0] == 48
        assert line.pixels.shape[1] > 48
        assert line.pixels.std() > 5


def test_lines_differ_in_contrast_and_brightness():
    lines = draw(60)
    spread = [line.pixels.std() for line in lines]
    paper = [np.median(line.pixels) for line in lines]  # most of a line is paper
    assert max(spread) > 2 * min(spread)
    assert min(paper) < 64 and max(paper) > 192


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_tensor_is_normalised_and_padded_on_the_right_with_zero(width):
    pixels = np.random.default_rng(width).integers(0, 256, (48, width)).astype(np.uint8)
    tensor = TextLine(pixels, "").tensor()
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 48, (width + 7) // 8 * 8)
    for channel in tensor[0]:
        np.testing.assert_allclose(channel[:, :width], pixels / 127.5 - 1.0, atol=1e-6)
        assert not channel[:, width:].any()


def test_unknown_split_and_missing_fonts_are_refused():
    with pytest.raises(UsageError, match="did you mean 'evaluation'"):
        draw(1, "evaluatoin")
    with pytest.raises(UsageError, match="no fonts"):
        draw_lines(1, split="evaluation", fonts=[])


def test_texts_are_short_printable_and_of_many_kinds():
    rng = np.random.default_rng(0)
    texts = [random_text(rng, "evaluation") for _ in range(400)]
    assert all(4 <= len(text) <= 60 and text.isascii() and text.isprintable() for text in texts)
    assert set('0123456789.,:;-!?@$"()/') <= set("".join(texts))
    assert len(set(texts)) > 390


def test_words_are_a_few_hundred_and_different():
    assert len(WORDS) == len(set(WORDS)) > 300
