#!/usr/bin/env python3
"""Small vocabularies in GGUF's terms, and the ids that the libraries they come from give.

    pip install sentencepiece tiktoken regex && python make_tokenizers.py > tokenizers.json
`llama`: a SentencePiece BPE model with byte fallback, trained on one speech, settings of Llama 2; ids by sentencepiece.
`llama-bpe`, `gpt-2`: byte-level merges learnt from the same speech under the splitting rules of Llama 3 and GPT-2; ids by tiktoken.
"""
import io, json, pathlib
from collections import Counter
import regex, sentencepiece as spm, tiktoken

here = pathlib.Path(__file__).parent
speech = (here.parent / 'text' / '2006_george_w_bush_r.txt').read_text()
TEXTS = ['', ' ', 'Hello', ' Hello  world', 'the state of the union', 'two  spaces and   three', 'line\nbreaks\n\n\nand\ttabs \n end',
         "we've, they'LL; don't", 'in 2006 and 12345678 people', '$1,000.50 (half)!', 'naïve Zürich', '漢字 and 🎉🎉', 'a\u00a0b',
         'mixed漢字text', ' lead and trail ', '...?!\n', "'s", speech[1000:1400]]

# ---- SentencePiece
model = io.BytesIO()
spm.SentencePieceTrainer.train(sentence_iterator=iter(speech.split('. ')), model_writer=model, model_type='bpe', vocab_size=700,
                               byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
                               remove_extra_whitespaces=False, normalization_rule_name='identity', character_coverage=0.995,
                               minloglevel=2)
sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 5 if sp.is_unused(i) else 6 if sp.is_byte(i) else 1
n = sp.vocab_size()
out = {'llama': {'tokens': [sp.id_to_piece(i) for i in range(n)], 'scores': [sp.get_score(i) for i in range(n)],
                 'token_type': [kind(i) for i in range(n)], 'bos': sp.bos_id(), 'eos': sp.eos_id(), 'unk': sp.unk_id(),
                 'texts': [{'text': t, 'ids': sp.encode(t, add_bos=True) if t else [sp.bos_id()]} for t in TEXTS]}}

# ---- byte-level BPE
visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
letters, extra = {}, 256
for b in range(256):
    letters[b] = chr(b if b in visible else extra); extra += b not in visible
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
for name, pattern in (('llama-bpe', LLAMA3), ('gpt-2', GPT2)):
    words = Counter(tuple(bytes([b]) for b in w.encode()) for w in regex.findall(pattern, speech + ' 123 456 789'))
    tokens, merges = [bytes([b]) for b in range(256)], []
    for _ in range(250):
        pairs = Counter()
        for w, c in words.items():
            for pair in zip(w, w[1:]): pairs[pair] += c
        best = max(pairs, key=lambda p: (pairs[p], p))
        tokens.append(b''.join(best)); merges.append(best)
        merged = Counter()
        for w, c in words.items():
            new, i = [], 0
            while i < len(w):
                if w[i:i + 2] == best: new.append(b''.join(best)); i += 2
                else: new.append(w[i]); i += 1
            merged[tuple(new)] += c
        words = merged
    special = {'<|begin_of_text|>': len(tokens), '<|end_of_text|>': len(tokens) + 1}
    enc = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens=special)
    show = lambda t: ''.join(letters[b] for b in t)
    out[name] = {'tokens': [*map(show, tokens), *special], 'token_type': [1] * len(tokens) + [3, 3],
                 'merges': [f'{show(a)} {show(b)}' for a, b in merges], 'bos': len(tokens), 'eos': len(tokens) + 1,
                 'texts': [{'text': t, 'ids': enc.encode_ordinary(t)} for t in TEXTS]}
print(json.dumps(out))
