"""Degenerate text: real text of several languages and code is none, and what a broken model writes is."""

# ruff: noqa: RUF001  Russian letters look like others
import random

import pytest
from transformers import AutoTokenizer

from cb_datasets.answers.gibberish import is_degenerate, is_random_tokens
from tests.growth import FACTOR, growth


@pytest.mark.parametrize(
    "text",
    [
        "to to to to to to to",
        "I'll. I'll. I'll. I'll. I'll. I'll.",
        "a b a b a b a b a b a b a b",
        "ok <|eot_id|> ok",
        "It is 4.<|start_header_id|>assistant",
        "<s> Hello </s>",
        "<s>Hello.</s>\n",
        "<s>Hello.</s> <s>So",
        "Hello.</s> So",
        "Hello <s> you </s>\n",
        "Use <s> so </s> <s>",
        "<s> is it",
        "It is <s>4.<|eot_id|>5</s> so.",
        "Hello.</s>",
        ", ".join(["0"] * 100),
        "[INST] Hello [/INST]",
        "Hello <start_of_turn>model",
        "Well <\uff5ctool\u2581sep\uff5c> then",
        "ble" * 20,
        "It \ufffd\ufffd is\ufffd so",
    ],
)
def test_gibberish(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "Hello, hello!",
        "-" * 60,
        "=-" * 4,
        "The tide turns twice a day, and so does the mood of the sea.",
        "One character of the file was unreadable: \ufffd.",
        "if a <= b and c < d | e: print('<|>')",
        "It costs <s>25 EUR</s> 19 EUR, and <s><b>two</b> of</s> them 35 EUR.",
        "In HTML, <s> strikes words out, as in <s>25 EUR</s>.",
        "Put <s> before the old price and </s> after it.",
        "It costs <s> 25 EUR </s> 19 EUR.",
        "It ends with <s>",
        "Balance: 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00",
        "| 0 | 0 | 0 | 0 | 0 | 0 | 0 |",
        "[1, 1, 1, 1, 1, 1, 1, 1]",
        "\n".join(" ".join("01"[row == column] for column in range(9)) for row in range(9)),
        "Rain in mm, 1 to 30 June: " + "0 " * 14 + "2 " + "0 " * 15,
        str([{"id": number, "read": "no"} for number in range(9)]),
        "| day | open |\n|---|---|\n" + "".join(f"| {day} | 0 |\n" for day in range(1, 15)),
    ],
)
def test_not_gibberish(text):
    assert not is_degenerate(text)


PARAGRAPHS = [
    "The second file is newer than the first one, so I kept it and moved the other to the archive. Shall I delete it?",
    "Your train leaves at 9:42 from platform 7 and arrives in Leeds at 12:05; a seat in coach C is booked for you.",
    "Photosynthesis turns light, water and carbon dioxide into sugar. Plants do most of it in their leaves.",
    "Die zweite Datei ist neuer als die erste, deshalb habe ich sie behalten. Soll ich die andere jetzt löschen?",
    "Ihr Zug fährt um 9:42 Uhr von Gleis 7 ab. In Wagen 3 ist ein Platz für Sie reserviert, am Fenster.",
    "Für den Teig mischen Sie Mehl, Zucker und eine Prise Salz; die Butter sollte weich, aber nicht flüssig sein.",
    "Le deuxième fichier est plus récent que le premier, je l'ai donc gardé. Voulez-vous que je supprime l'autre ?",
    "Votre train part à 9 h 42 de la voie 7 ; une place côté fenêtre vous est réservée dans la voiture 3.",
    "La réunion de mardi est reportée à jeudi, parce que la moitié de l'équipe est en déplacement à Lyon.",
    "El segundo archivo es más reciente que el primero, así que lo he guardado. ¿Quiere que borre el otro?",
    "Su tren sale a las 9:42 de la vía 7 y llega a Sevilla poco después del mediodía, si no hay retrasos.",
    "Para la masa, mezcle la harina con el azúcar y una pizca de sal; la mantequilla debe estar blanda.",
    "Второй файл новее первого, поэтому я его оставил, а первый перенёс в архив. Удалить его совсем?",
    "Ваш поезд отправляется в 9:42 с седьмого пути; место у окна забронировано в третьем вагоне.",
    "Встреча во вторник перенесена на четверг, потому что половина группы уехала в командировку.",
    "第二个文件比第一个文件更新，所以我保留了它，并把另一个文件移到了存档文件夹。您要我把它删除吗？"
    "如果需要，我可以先发给您看一下。谢谢您的耐心等待，祝您工作顺利。",
    "您的火车将于上午九点四十二分从七号站台出发，中午前后到达上海。"
    "我已经为您预订了三号车厢靠窗的座位，请提前半个小时到达车站，并带好您的身份证件。",
    'def mean(values: list[float]) -> float:\n    """Mean of values."""\n    return sum(values) / len(values)\n',
    "for (const row of rows) {\n  if (row.amount > limit) {\n    console.log(`${row.name}: ${row.amount}`);\n  }\n}\n",
    "SELECT name, SUM(amount) AS total FROM payments WHERE paid_on >= '2024-01-01' GROUP BY name ORDER BY total DESC;",
    "| city | trains | first | last |\n|---|---|---|---|\n| Leeds | 14 | 5:50 | 23:10 |\n| York | 9 | 4:45 | 0:10 |\n",
]


@pytest.mark.parametrize("text", PARAGRAPHS)
def test_text_of_any_language_and_code_is_not_random(text):
    assert len(text) >= 60
    assert not is_degenerate(text)


NAMES = [
    "Emma Johnson",
    "David Smith",
    "Carol Wright",
    "Grace Lewis",
    "Heidi Young",
    "Jörg Weiß",
    "Ann Lee",
    "Ivan Petrov",
]
ERRANDS = [
    "Yoga",
    "Dentist",
    "Team sync",
    "Standup",
    "Retro",
    "Gym",
    "Parents' evening",
    "Call with Bob",
    "Quiz night",
    "Zahnarzt",
    "Vet",
]
HOSTS = ("hotmail.com", "bluesparrowtech.com", "example.org", "mail.example.co.uk")


def address(rng):
    return f"{rng.choice(NAMES).lower().replace(' ', rng.choice('._'))}@{rng.choice(HOSTS)}"


@pytest.mark.parametrize(
    "line",
    [
        lambda rng: f"{rng.randrange(24):02}:{rng.choice(('00', '30', '45'))} {rng.choice(ERRANDS)}",
        lambda rng: f"- {rng.choice(ERRANDS)}",
        lambda rng: f"{rng.choice(NAMES)}: +1-{rng.randrange(200, 999)}-{rng.randrange(1000, 9999)}",
        address,
        lambda rng: f"* {rng.choice(NAMES)} <{address(rng)}>",
    ],
)
@pytest.mark.parametrize("opening", ["", "Here they are:\n\n"])
def test_lists_of_names_and_times_are_not_random(line, opening):
    rng = random.Random(0)
    texts = [opening + "\n".join(line(rng) for _ in range(rng.randint(6, 20))) for _ in range(200)]
    assert sum(map(is_random_tokens, texts)) <= 2


def test_addresses_on_one_line_are_not_random():
    rng = random.Random(0)
    texts = [", ".join(address(rng) for _ in range(rng.randint(3, 9))) for _ in range(200)]
    assert sum(map(is_random_tokens, texts)) <= 2


def test_chat_of_people_is_not_gibberish(real_data):
    import csv

    with open(
        real_data / "xstest" / "xstest_v2_completions_mistralinstruct.csv", newline="", encoding="utf-8"
    ) as file:
        texts = [row["completion"] for row in csv.DictReader(file)]
    assert len(texts) == 450
    assert sum(map(is_degenerate, texts)) <= 0.01 * len(texts)


def random_tokens(tokenizer, size, count=200):
    rng = random.Random(0)
    vocabulary = range(len(tokenizer))
    return [tokenizer.decode(rng.choices(vocabulary, k=size), skip_special_tokens=True) for _ in range(count)]


@pytest.mark.parametrize("size", [30, 60, 200])
def test_random_tokens_of_llama_are_gibberish(llama_tokenizer, size):
    assert sum(map(is_degenerate, random_tokens(llama_tokenizer, size))) >= 196  # of 200


def test_random_tokens_of_the_tiny_agent_are_gibberish(tiny_agent_path):
    texts = random_tokens(AutoTokenizer.from_pretrained(tiny_agent_path), 60)
    assert sum(map(is_degenerate, texts)) >= 196
    # A list that is left out hides nothing.
    assert sum(is_random_tokens(text + "\n- Yoga\n- Gym" * 9) for text in texts) >= 196


def test_broken_utf8_is_gibberish():
    rng = random.Random(0)
    texts = [rng.randbytes(120).decode("utf-8", "replace") for _ in range(200)]
    assert all(map(is_degenerate, texts))


def test_babble_of_few_words_is_gibberish():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["the", "of", "tool", "and"], k=40)) for _ in range(200)]
    assert sum(map(is_degenerate, texts)) >= 196


@pytest.mark.parametrize("piece", ["-", " ", "\n", "a", "a ", "<|", "(", "{", "\u3042", "-a", "ab\n"])
def test_time_grows_with_the_length_of_the_text_only(piece):
    assert growth(is_degenerate, lambda n: piece * n, 20_000) < 3 * FACTOR
