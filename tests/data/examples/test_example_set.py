import bz2
import gzip
import json
import lzma
import os

import pyarrow
import pytest
from pyarrow import parquet

from megatrain.base.errors import ConfigError, DataError
from megatrain.base.progress import Progress
from megatrain.config import FinetuneConfig
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import read_example_set
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.families.llama.section import LlamaSection
from megatrain.tasks.sft.section import SFTSection
from tests.tokenizer_kinds import CHAT_TEMPLATE

ROOM = 10**6


def model(vocab_size: int) -> LlamaSection:
    return LlamaSection(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, vocab_size=vocab_size
    )


def read_set(paths, tokenizer, *, sequence_length=64, vocab_size=ROOM, template=None, **fields):
    paths = [paths] if isinstance(paths, str) else paths
    section = SFTSection(**fields)
    return read_example_set(
        paths, tokenizer, section, template=template, sequence_length=sequence_length, model=model(vocab_size)
    )


def read(paths, tokenizer, **options):
    """(tokens, prompt tokens) of each example."""
    found = []
    for row in read_set(paths, tokenizer, **options).rows:
        for start, end in zip([0, *row.ends], row.ends, strict=False):
            found.append((row.tokens[start:end].tolist(), int((~row.is_target[start:end]).sum())))
    return found


class TestReading:
    def test_pairs_of_all_files_in_order(self, tokenizer, write_pairs) -> None:
        first = write_pairs({"prompt": "who", "response": " me"}, "", {"prompt": "", "response": "x"}, name="a.jsonl")
        second = write_pairs({"q": 1, "prompt": "where", "response": " at"}, name="b.jsonl")

        examples = read([first, second], tokenizer)

        texts = [(tokenizer.decode(tokens[:n]), tokenizer.decode(tokens[n:-1])) for tokens, n in examples]
        assert texts == [("who", " me"), ("", "x"), ("where", " at")]
        assert all(tokens[-1] == tokenizer.eos_id for tokens, _ in examples)

    def test_the_fields_can_be_named(self, tokenizer, write_pairs) -> None:
        path = write_pairs({"question": "who", "data": {"answer": "me"}, "data.answer.b": "you"})
        for response, text in (("data.answer", "whome"), ("data.answer.b", "whoyou")):
            ((tokens, _),) = read([path], tokenizer, prompt_field="question", response_field=response)
            assert tokenizer.decode(tokens[:-1]) == text

    def test_only_a_line_feed_ends_a_line(self, tokenizer, write_pairs) -> None:
        """JSON text may hold other separators of lines as they are."""
        response = "a\u2028b\u0085c"
        path = write_pairs({"prompt": "p", "response": response}, '{"prompt": "p", "response": "r"}\r')
        (tokens, n), _ = read([path], tokenizer)
        assert tokenizer.decode(tokens[n:-1]) == response

    def test_alpaca_is_known_by_its_fields(self, tokenizer, write_pairs) -> None:
        path = write_pairs(
            {"instruction": "Add {input}.", "input": "1 and 2", "output": "3"}, {"instruction": "Hi", "output": "yo"}
        )
        (first, _), (second, _) = read([path], tokenizer, sequence_length=300)
        text = tokenizer.decode(first)
        assert "### Instruction:\nAdd {input}.\n\n### Input:\n1 and 2\n\n### Response:\n3<|endoftext|>" in text
        assert tokenizer.decode(second).endswith("### Instruction:\nHi\n\n### Response:\nyo<|endoftext|>")


class TestFiles:
    """What `data prepare` reads is read here."""

    ROWS = [{"prompt": "who", "response": f" {number}"} for number in range(3)]  # noqa: RUF012

    @pytest.mark.parametrize("opened", [gzip.open, lzma.open, bz2.open])
    def test_compressed_lines(self, tokenizer, tmp_path, opened) -> None:
        ending = {gzip.open: "gz", lzma.open: "xz", bz2.open: "bz2"}[opened]
        file = tmp_path / f"A.JSONL.{ending}"
        with opened(file, "wt") as lines:
            lines.write("".join(json.dumps(row) + "\n" for row in self.ROWS))
        for path in (file, tmp_path, tmp_path / "*.JSONL.*"):
            assert len(read(str(path), tokenizer)) == 3

    def test_tables(self, make_tokenizer, tmp_path) -> None:
        folder = make_tokenizer("byte_level", chat_template=CHAT_TEMPLATE)
        tokenizer, template = Tokenizer.load(folder), ChatTemplate.load(folder)
        parquet.write_table(pyarrow.Table.from_pylist([{"messages": TestMessages.CHAT}]), tmp_path / "a.parquet")
        (tmp_path / "b.csv").write_text('prompt,response\n"who, what","me"\n')
        (chat, _), (pair, _) = read(str(tmp_path), tokenizer, template=template)
        assert tokenizer.decode(chat).startswith("<s><|im_start|>user\nwho<|im_end|>")
        assert tokenizer.decode(pair) == "<s>who, whatme</s>"

    @pytest.mark.timeout(20)
    def test_what_has_no_rows(self, tokenizer, tmp_path) -> None:
        (tmp_path / "a.txt").write_text("prose\n")
        os.mkfifo(tmp_path / "pipe")
        for name, says in (("a.txt", "is plain text, which has no rows"), ("pipe", "it is a named pipe")):
            with pytest.raises(DataError, match=rf"{name}: .*{says}"):
                read(str(tmp_path / name), tokenizer)


class TestTokens:
    def test_what_the_tokenizer_puts_in_front_is_no_target(self, make_tokenizer, write_pairs) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
        ((tokens, n),) = read(write_pairs({"prompt": "who", "response": " me"}), tokenizer)
        assert tokenizer.decode(tokens) == "<s>who me</s>"
        assert tokenizer.decode(tokens[:n]) == "<s>who"

    @pytest.mark.parametrize("behind", ["", " </s>", " <|im_end|>", " <|im_end|> </s>"])
    def test_one_end_of_text(self, make_tokenizer, write_pairs, behind) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level", behind=behind))
        path = write_pairs({"prompt": "who", "response": " me"}, {"prompt": "<s>who", "response": " me</s>"})
        first, second = (tokenizer.decode(tokens) for tokens, _ in read(path, tokenizer))
        added = "<|im_end|>" if "im_end" in behind else ""
        assert first == f"<s>who me{added}</s>"
        assert second == (f"<s>who me</s>{added}</s>" if added else "<s>who me</s>")

    def test_special_tokens_are_special_or_text(self, make_tokenizer, write_pairs) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
        chat = Tokenizer.load(make_tokenizer("byte_level"))._tokenizer.token_to_id("<|im_start|>")
        path = write_pairs({"prompt": "<|im_start|>who", "response": " me"})
        ((parsed, _),), ((text, _),) = read(path, tokenizer), read(path, tokenizer, special_tokens="text")
        assert chat in parsed
        assert chat not in text
        assert tokenizer.decode(parsed) == tokenizer.decode(text)

    def test_a_token_across_the_boundary_is_the_responses(self, make_tokenizer, write_pairs) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level", front=""))
        whole = tokenizer.encode("the question")
        (word,) = tokenizer.encode(" question")
        assert whole[-1] == word
        ((tokens, n),) = read(write_pairs({"prompt": "the ", "response": "question"}), tokenizer)
        assert tokens[:-1] == whole
        assert tokens[n] == word

    def test_padding_lies_within_the_embedding(self, make_tokenizer, write_pairs) -> None:
        folder = make_tokenizer("byte_level")
        written = json.loads((folder / "tokenizer.json").read_text())
        largest = max(token["id"] for token in written["added_tokens"])
        written["added_tokens"].append({**written["added_tokens"][-1], "id": largest + 1, "content": "<pad>"})
        (folder / "tokenizer.json").write_text(json.dumps(written))
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.pad_id == largest + 1
        path = write_pairs({"prompt": "who", "response": " me"})
        (row,) = read_set(path, tokenizer, vocab_size=largest + 1).rows
        assert row.tokens.max() <= largest
        (row,) = read_set(path, tokenizer, vocab_size=largest + 2).rows
        assert row.tokens[-1] == largest + 1
        with pytest.raises(DataError, match=r"pairs.jsonl:1: holds the token '<pad>' \(id \d+\), which lies outside"):
            read_set(write_pairs({"prompt": "<pad>", "response": "a"}), tokenizer, vocab_size=largest + 1)
        with pytest.raises(DataError, match="lies outside of the model's embedding of 9 rows"):
            read_set(path, tokenizer, vocab_size=9)


class TestTruncation:
    def test_a_prompt_that_is_too_long_loses_its_start_but_not_what_begins_it(
        self, make_tokenizer, write_pairs
    ) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
        prompt, response = "where " * 30, "the answer"
        path = write_pairs({"prompt": prompt, "response": response})
        found = read_set(path, tokenizer, sequence_length=16)
        ((tokens, _),) = read(path, tokenizer, sequence_length=16)
        whole = tokenizer.encode(prompt + response)
        assert len(tokens) == 16
        assert tokens == [tokens[0], *whole[-14:], tokenizer.eos_id]
        assert tokenizer.decode(tokens[:1]) == "<s>"
        (report,) = found.files
        assert (report.prompts_cut, report.responses_cut) == (1, 0)
        assert report.prompt_tokens_cut == len(whole) + 2 - 16
        assert found.warnings() == [
            f"{path}: of 1 examples, cut to 16 tokens, 1 lose {report.prompt_tokens_cut} tokens at the start of their "
            "prompts. Raise finetune.sequence_length, or set task.truncation: drop"
        ]

    @pytest.mark.parametrize("length", [3, 4, 9])
    def test_a_response_that_is_too_long_loses_its_end_and_is_not_taught_to_stop(
        self, tokenizer, write_pairs, length
    ) -> None:
        path = write_pairs({"prompt": "who what where", "response": " the answer to the question" * 9})
        ((tokens, n),) = read([path], tokenizer, sequence_length=length)
        assert len(tokens) == length
        assert n == min(length // 2, len(tokenizer.encode("who what where")))
        assert tokenizer.eos_id not in tokens
        (report,) = read_set(path, tokenizer, sequence_length=length).files
        whole = len(tokenizer.encode("who what where" + " the answer to the question" * 9)) + 1
        assert report.prompt_tokens_cut + report.response_tokens_cut == whole - length
        assert "1 lose" in (report.warning() or "")

    def test_long_examples_can_be_dropped_or_refused(self, tokenizer, write_pairs) -> None:
        path = write_pairs({"prompt": "who", "response": " me"}, {"prompt": "who " * 99, "response": " me"})
        found = read_set(path, tokenizer, truncation="drop")
        assert found.examples == 1
        assert found.warnings() == [
            f"{path}: 1 of 2 examples are longer than 64 tokens and are dropped (task.truncation: drop)"
        ]
        with pytest.raises(
            DataError, match=r"pairs.jsonl:2: has \d+ tokens, more than finetune.sequence_length \(64\)"
        ):
            read_set(path, tokenizer, truncation="error")
        with pytest.raises(DataError, match="all 2 examples are dropped"):
            read_set(path, tokenizer, truncation="drop", sequence_length=2)

    def test_a_sequence_without_room(self, make_tokenizer, write_pairs) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
        with pytest.raises(ConfigError, match=r"finetune.sequence_length: 2: must be at least 3"):
            read_set(write_pairs({"prompt": "who", "response": " me"}), tokenizer, sequence_length=2)


class TestMessages:
    CHAT = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "me"}]  # noqa: RUF012

    def test_ids_are_those_of_the_template(self, make_tokenizer, write_pairs) -> None:
        from transformers import AutoTokenizer

        folder = make_tokenizer("byte_level", chat_template=CHAT_TEMPLATE)
        tokenizer, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
        path = write_pairs({"prompt": "not this", "messages": self.CHAT})
        ((tokens, n),) = read(path, tokenizer, template=ChatTemplate.load(folder), train_on="last_turn")
        assert tokens == theirs.apply_chat_template(self.CHAT)["input_ids"]
        prompt = theirs.apply_chat_template(self.CHAT[:-1], add_generation_prompt=True)["input_ids"]
        assert tokens[:n] == prompt

    def test_a_template_that_ends_nothing_gets_an_end_of_text(self, make_tokenizer, write_pairs) -> None:
        folder = make_tokenizer("byte_level", chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
        tokenizer = Tokenizer.load(folder)
        ((tokens, _),) = read(write_pairs({"messages": self.CHAT}), tokenizer, template=ChatTemplate.load(folder))
        assert tokenizer.decode(tokens) == "who\nme\n</s>"

    @pytest.mark.parametrize(
        ("messages", "says"),
        [
            ([], "must end with what the assistant answers"),
            ([{"role": "assistant", "content": "me"}], "must end with what the assistant answers"),
            ([{"role": "user", "content": "who"}], "must end with what the assistant answers"),
            ("who", "must be a list of messages"),
            (["who"], "must be a list of messages"),
            ([{"content": "who"}], r"messages.0.role: must be text"),
            ([{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]], r"messages.0.content: must be text"),
            ([{"role": "user"}, CHAT[1]], r"messages.0.content: must be text"),
        ],
    )
    def test_what_is_no_conversation(self, make_tokenizer, write_pairs, messages, says) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
        with pytest.raises(DataError, match=rf"pairs.jsonl:1: (messages: )?{says}"):
            read(write_pairs({"messages": messages}), tokenizer)

    def test_without_a_template(self, tokenizer, write_pairs) -> None:
        with pytest.raises(DataError, match=r"pairs.jsonl:1: messages: the tokenizer has no chat template"):
            read(write_pairs({"messages": self.CHAT}), tokenizer)


class TestMistakes:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "is not"),
            ("[" * 100_000, "is JSON nested too deeply to be read"),
            ({"prompt": "p"}, "response: is not there as text"),
            ({"response": "r"}, "prompt: is not there as text"),
            ({"prompt": 3, "response": "r"}, "prompt: is not there as text"),
            ({"prompt": "p", "response": None}, "response: is not there as text; the row has prompt, response"),
            ({"prompt": "p", "response": ""}, "response: is empty"),
            ({"instruction": "p", "output": 3}, "output: must be text"),
            ({"instruction": 3, "output": "r"}, "instruction: must be text"),
            ({"instruction": "p", "input": 3, "output": "r"}, "input: must be text"),
            ('{"prompt": "bad \\ud83d end", "response": "r"}', "prompt: half a surrogate pair at character 4"),
            ('{"prompt": "p", "response": "\\ude00"}', "response: half a surrogate pair at character 0"),
            ('["p", "r"]', "must be a JSON object"),
            ("null", "must be a JSON object"),
        ],
    )
    def test_file_line_and_field_are_named(self, tokenizer, write_pairs, line, says) -> None:
        path = write_pairs({"prompt": "p", "response": "r"}, "", line)
        with pytest.raises(DataError) as caught:
            read([path], tokenizer)
        assert str(caught.value).startswith(f"{path}:3: {says}")

    def test_all_at_once_up_to_a_limit(self, tokenizer, write_pairs) -> None:
        wrong = {"prompt": "p"}
        first = write_pairs(wrong, {"prompt": "p", "response": "r"}, wrong, name="a.jsonl")
        with pytest.raises(DataError) as caught:
            read([first, write_pairs(wrong, name="b.jsonl")], tokenizer)
        places = [line.split(": ")[0].rpartition("/")[2] for line in str(caught.value).splitlines()]
        assert places == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1"]
        with pytest.raises(DataError) as caught:
            read([write_pairs(*[wrong] * 99)], tokenizer)
        assert len(str(caught.value).splitlines()) == 11

    def test_a_response_that_becomes_no_token(self, make_tokenizer, write_pairs) -> None:
        tokenizer = Tokenizer.load(make_tokenizer("wordpiece"))
        with pytest.raises(DataError, match=r"pairs.jsonl:1: the response has no token"):
            read(write_pairs({"prompt": "who", "response": " "}), tokenizer)

    @pytest.mark.parametrize("content", [b"", b"\n \n"])
    def test_an_empty_file(self, tokenizer, tmp_path, content) -> None:
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"empty.jsonl: holds no examples"):
            read([str(tmp_path / "empty.jsonl")], tokenizer)

    def test_a_file_that_is_not_there(self, tokenizer, tmp_path) -> None:
        with pytest.raises(DataError, match="none"):
            read([str(tmp_path / "none")], tokenizer)


def test_what_there_is_to_say(tokenizer, write_pairs) -> None:
    path = write_pairs(*[{"prompt": "who", "response": " me"}] * 5)
    found = read_set(path, tokenizer, sequence_length=9)
    tokens = 5 * (len(tokenizer.encode("who me")) + 1)
    assert found.tokens == tokens
    config = FinetuneConfig.model_validate(
        {
            "run": {"name": "t"},
            "finetune": {"base": "b", "train": [path], "sequence_length": 9},
            "training": {"tokens": 12 * 9, "global_batch_size": 2},
        }
    )
    said = found.describe(config, Progress())
    assert said.startswith(f"5 examples ({tokens} tokens) in {len(found.rows)} rows of 9, ")
    assert said.endswith(f"% padding: 6 steps are {12 / len(found.rows):.3g} epochs")
    larger_batches_before = Progress(step=1, samples=8)
    assert found.describe(config, larger_batches_before).endswith(f"3 steps are {12 / len(found.rows):.3g} epochs")
