import dataclasses
import json

import pytest

from compress.distill.vocabulary import check_meanings
from compress.errors import CompressError
from compress.model import ModelProcessing
from runtimes.processing.record import Processing
from runtimes.processing.text import TextInput, Words

WORDS = ("<pad>", "red", "blue")


def saying(model, *, words=None, file=None):
    if file is not None:
        entry = TextInput(from_="question", pad_id=0, tokenizer="tokenizer.json")
    else:
        entry = TextInput(from_="question", pad_id=0, vocabulary=Words(words=words))
    section = Processing(inputs={"picture": entry}, outputs={})
    files = {} if file is None else {"tokenizer.json": json.dumps(file).encode()}
    return dataclasses.replace(model, processing=ModelProcessing(section=section, files=files))


def tokenizer(vocabulary, **more):
    return {"model": {"vocab": vocabulary}, **more}


def test_classes_in_another_order_are_refused(build):
    student = dataclasses.replace(build(), labels={"output": ("cat", "dog", "cow")})
    teacher = dataclasses.replace(build(), labels={"output": ("cat", "cow", "dog")})
    check_meanings("pair", student, student)
    check_meanings("pair", student, build())            # it is not known what the teacher's classes are
    message = r"^pair mean different classes by .* output 'output': class 1 is 'dog' in the student, 'cow' in the"
    with pytest.raises(CompressError, match=message):
        check_meanings("pair", student, teacher)


def test_other_words_are_refused(build):
    student = saying(build(), words=WORDS)
    check_meanings("pair", student, saying(build(), words=WORDS))
    with pytest.raises(CompressError, match="vocabularies for 'picture': token 2 is 'blue' in the student, 'green' in"):
        check_meanings("pair", student, saying(build(), words=("<pad>", "red", "green")))
    with pytest.raises(CompressError, match="vocabularies for 'picture': of 3 and 4 entries; a teacher needs those"):
        check_meanings("pair", student, saying(build(), words=(*WORDS, "green")))


@pytest.mark.parametrize("form", ["ids", "scores"])
def test_tokenizers_are_compared_by_their_tokens(build, form):
    def held(words):
        return {word: index for index, word in enumerate(words)} if form == "ids" else [[word, -1.5] for word in words]

    student = saying(build(), file=tokenizer(held(WORDS), version="1.0"))
    same = tokenizer(held(WORDS[:2]), added_tokens=[{"content": "blue", "id": 2}])
    check_meanings("pair", student, saying(build(), file=same))
    check_meanings("pair", student, saying(build(), words=WORDS))
    with pytest.raises(CompressError, match="token 1 is 'red' in the student, 'blue' in the teacher"):
        check_meanings("pair", student, saying(build(), file=tokenizer(held(("<pad>", "blue", "red")))))
