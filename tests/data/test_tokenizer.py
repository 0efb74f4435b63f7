import pytest
import torch

from course_lib.data.tokenizer import NUMERALS, VOCABULARY, Tokenizer

tokenizer = Tokenizer()


def test_the_vocabulary_is_small_fixed_and_free_of_doubles():
    assert len(tokenizer) == len(VOCABULARY) == len(set(VOCABULARY)) <= 200
    assert VOCABULARY[:3] == ("<pad>", "<bos>", "<unk>") and VOCABULARY[-1] == "<eos>"
    assert tokenizer.eos == max(range(len(VOCABULARY)))
    # Ids are stored in checkpoints: a word that moves breaks them all. Add new words at the end only.
    assert [VOCABULARY.index(word) for word in ("0", "##9", "zero", "red", "top-left", "up", "moving", "watch")] == [
        *(3, 22, 27, 38, 44, 59, 104, 161)
    ]


def test_encoding_frames_the_text_and_pads():
    ids = tokenizer.encode(["a 3 moving left", "a 16"], length=9)
    assert ids.shape == (2, 9) and ids.dtype == torch.int64
    names = [[VOCABULARY[i] for i in row] for row in ids.tolist()]
    assert names[0] == ["<bos>", "a", "3", "moving", "left", "<eos>", "<pad>", "<pad>", "<pad>"]
    assert names[1] == ["<bos>", "a", "1", "##6", "<eos>", *["<pad>"] * 4]
    assert ids.argmax(1).tolist() == [5, 4]  # where CLIP pools
    assert tokenizer.encode("a 3").shape == (4,)
    assert tokenizer.encode(["a 3", "a 3 moving left"]).shape == (2, 6)


def test_decoding_inverts_encoding():
    texts = ["a 3 moving left, a 7: still.", "how many digits? two.", "16 frames", "1 6 0412", ""]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert tokenizer.decode(torch.tensor([tokenizer.bos, VOCABULARY.index("red"), tokenizer.eos, 5])) == "red"


def test_every_number_has_tokens_and_unknown_words_are_marked():
    for number in range(1000):
        assert tokenizer.decode(tokenizer.encode(str(number))) == str(number)
    assert tokenizer.tokens("A Red zebra!") == ["a", "red", "<unk>", "<unk>"]
    assert tokenizer.encode("zebra")[1] == tokenizer.unk == 2
    assert set(tokenizer.tokens("0123456789 9876543210")) <= set(NUMERALS)
    assert tokenizer.tokens("\u0663") == ["<unk>"]  # a digit, but not one of ours


def test_errors_name_the_caption_and_the_id():
    with pytest.raises(ValueError, match="'a 3 moving left' needs 6 tokens, but length is 5"):
        tokenizer.encode(["a 3", "a 3 moving left"], length=5)
    with pytest.raises(ValueError, match="empty"):
        tokenizer.encode([])
    with pytest.raises(ValueError, match=f"token id {len(tokenizer)} is outside"):
        tokenizer.decode(torch.tensor([1, len(tokenizer)]))
    with pytest.raises(ValueError, match="token id -1"):
        tokenizer.decode(torch.tensor([-1]))
