//! Text becomes the ids that the model was trained with, and back, whatever the text is; broken files give a named error.

mod support;

use ratoon::model::{ChatTemplate, GenerationConfig, Message, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

fn prompts() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/prompts.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["prompts"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A byte-level BPE over the given tokens, with `<s>` as BOS.
fn small_tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": null, "normalizer": null,
        "added_tokens": [{ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } } },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3, "Ã": 4, "©": 5 }, "merges": [["a", "b"]] }
    })
}

fn load(files: &[(&str, Value)]) -> (tempfile::TempDir, ratoon::Result<Tokenizer>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::load(dir.path());
    (dir, tokenizer)
}

#[test]
fn the_real_tokenizer_gives_the_reference_ids_and_texts() {
    let dir = support::smollm2();
    let tokenizer = Tokenizer::load(&dir).unwrap();
    for prompt in prompts() {
        let (name, text) = (&prompt["name"], prompt["text"].as_str().unwrap());
        let got = tokenizer.encode(text, true).unwrap();
        assert_eq!(got, ids(&prompt["ids"]), "{name}");
        assert_eq!(tokenizer.decode(&got, false).unwrap(), text, "{name}");
        let greedy = ids(&prompt["greedy64_ids"]);
        assert_eq!(tokenizer.decode(&greedy, false).unwrap(), prompt["greedy64_text"].as_str().unwrap(), "{name}");
    }
    assert_eq!(tokenizer.encode("A  12", true).unwrap(), [49, 256, 33, 34]);
    assert_eq!(GenerationConfig::load(&dir).unwrap().eos_token_ids, [2]);
}

#[test]
fn the_real_template_gives_the_reference_text() {
    let dir = support::smollm2();
    let (template, tokenizer) = (ChatTemplate::require(&dir).unwrap(), Tokenizer::load(&dir).unwrap());
    let mut compared = 0;
    for prompt in prompts().iter().filter(|p| p["text"].as_str().unwrap().starts_with("<|im_start|>")) {
        // The reference holds the rendered text; the conversation is read back from its turns.
        let text = prompt["text"].as_str().unwrap();
        let turns = text.strip_suffix("<|im_start|>assistant\n").expect("opened for the assistant");
        let messages: Vec<Message> = turns
            .split("<|im_start|>")
            .filter(|turn| !turn.is_empty())
            .map(|turn| turn.strip_suffix("<|im_end|>\n").unwrap().split_once('\n').unwrap())
            .map(|(role, content)| Message::new(role, content))
            .collect();
        assert_eq!(template.render(&messages, true).unwrap(), text);
        let default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        if messages[0] == Message::new("system", default) {
            assert_eq!(template.render(&messages[1..], true).unwrap(), text, "the default system message is added");
        }
        assert_eq!(template.encode(&tokenizer, &messages, true).unwrap(), ids(&prompt["ids"]));
        compared += 1;
    }
    assert!(compared > 0, "the reference has chat prompts");
}

#[test]
fn text_decoded_id_by_id_is_the_text_decoded_at_once() {
    let tokenizer = Tokenizer::load(&support::smollm2()).unwrap();
    let mut texts: Vec<String> = prompts().iter().map(|p| p["text"].as_str().unwrap().to_string()).collect();
    texts.push("naïve 😀👩‍👩‍👧 漢字 \u{0} tab\t<|im_end|> after, ½ ﷽".into());
    for text in texts {
        let ids = tokenizer.encode(&text, false).unwrap();
        let whole = tokenizer.decode(&ids, true).unwrap();
        let mut stream = tokenizer.stream();
        let mut pieces = String::new();
        for id in ids {
            let piece = stream.push(id).unwrap().unwrap_or_default();
            assert!(!piece.contains('\u{FFFD}'), "half a character was given out: {piece:?}");
            pieces += &piece;
        }
        pieces += &stream.finish().unwrap();
        assert_eq!(pieces, whole);
    }
}

#[test]
fn half_a_character_at_the_end_becomes_a_replacement_character() {
    let (_dir, tokenizer) = load(&[("tokenizer.json", small_tokenizer())]);
    let tokenizer = tokenizer.unwrap();
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(3).unwrap().as_deref(), Some("ab"));
    assert_eq!(stream.push(4).unwrap(), None);
    assert_eq!(stream.push(5).unwrap().as_deref(), Some("é"));
    assert_eq!(stream.push(4).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn nul_and_special_texts_survive() {
    let tokenizer = Tokenizer::load(&support::smollm2()).unwrap();
    for text in ["\0", "a\0b", "<|im_start|>user", "\u{FFFD}", ""] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn nothing_is_truncated_and_bos_comes_once() {
    let (_dir, tokenizer) = load(&[("tokenizer.json", small_tokenizer())]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.encode("ababab", true).unwrap(), [0, 3, 3, 3], "the file asks for 2 ids");
    assert_eq!(tokenizer.encode("ababab", false).unwrap(), [3, 3, 3]);
    assert_eq!(tokenizer.encode("<s>ab", true).unwrap(), [0, 3], "BOS once");
    assert_eq!(tokenizer.encode("<s>ab", false).unwrap(), [0, 3]);
}

#[test]
fn five_megabytes_of_one_character_take_seconds() {
    let tokenizer = Tokenizer::load(&support::smollm2()).unwrap();
    // Other characters at a tenth of the size: the time must grow with the length, not with its square.
    for (c, bytes) in [("a", 5_000_000), (" ", 500_000), ("0", 500_000), ("é", 500_000), ("\n", 500_000)] {
        let start = Instant::now();
        let text = c.repeat(bytes / c.len());
        let ids = tokenizer.encode(&text, false).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{c:?}: {} ids in {seconds:.2} s", ids.len());
        assert!(seconds < 60.0, "{c:?}: {seconds} s");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn an_id_that_the_model_does_not_have_is_named() {
    let (_dir, tokenizer) = load(&[("tokenizer.json", small_tokenizer()), ("config.json", json!({ "vocab_size": 3 }))]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.encode("ba", false).unwrap(), [2, 1]);
    let error = tokenizer.encode("ab", false).unwrap_err().to_string();
    let parts = ["tokenizer.json", "token \"ab\"", "vocab_size 3", "found 3"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let error = tokenizer.decode(&[1, 77], false).unwrap_err().to_string();
    assert!(error.contains("ids below 6") && error.contains("found 77"), "{error}");
}

#[test]
fn crafted_tokenizers_give_a_named_error() {
    let crafted = |change: &dyn Fn(&mut Value)| {
        let mut json = small_tokenizer();
        change(&mut json);
        json
    };
    let cases: Vec<(&str, Value)> = vec![
        ("merge of unknown tokens", crafted(&|j| j["model"]["merges"] = json!([["x", "y"]]))),
        ("merge without result", crafted(&|j| j["model"]["merges"] = json!([["b", "a"]]))),
        ("merge of three", crafted(&|j| j["model"]["merges"] = json!([["a", "b", "a"]]))),
        ("legacy merge without space", crafted(&|j| j["model"]["merges"] = json!(["ab"]))),
        ("negative id", crafted(&|j| j["model"]["vocab"]["a"] = json!(-1))),
        ("huge id", crafted(&|j| j["model"]["vocab"]["a"] = json!(1u64 << 63))),
        ("unknown model", crafted(&|j| j["model"]["type"] = json!("Nonsense"))),
        (
            "bad regex",
            crafted(&|j| {
                j["pre_tokenizer"] =
                    json!({ "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false });
            }),
        ),
        ("special token without ids", crafted(&|j| j["post_processor"]["special_tokens"] = json!({}))),
        (
            "empty precompiled map",
            crafted(&|j| {
                j["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
            }),
        ),
        ("no model", crafted(&|j| *j = json!({}))),
        ("a list", json!([])),
    ];
    for (name, json) in cases {
        let (_dir, loaded) = load(&[("tokenizer.json", json)]);
        // What loads must also encode, or fail with an error.
        let error = match loaded {
            Ok(tokenizer) => tokenizer.encode("abé", true).err(),
            Err(error) => Some(error),
        };
        let error = error.unwrap_or_else(|| panic!("{name}: accepted")).to_string();
        assert!(error.contains("tokenizer.json: ") && error.contains("expected"), "{name}: {error}");
        assert!(!error.contains('\n'), "{name}: one line: {error}");
    }
}

#[test]
fn a_template_file_overrides_the_config_and_lists_have_a_default() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    let render = || ChatTemplate::require(dir.path())?.render(&[Message::new("user", "hi")], false);
    let error = render().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    write("tokenizer_config.json", json!({ "bos_token": "<s>" }).to_string());
    assert!(render().is_err(), "a config without template");
    let named =
        |name: &str| json!([{ "name": "rag", "template": "R" }, { "name": name, "template": "D{{ bos_token }}" }]);
    let config = |template: Value| json!({ "bos_token": { "content": "<s>" }, "chat_template": template }).to_string();
    write("tokenizer_config.json", config(named("default")));
    assert_eq!(render().unwrap(), "D<s>");
    write("tokenizer_config.json", config(named("other")));
    assert!(render().unwrap_err().to_string().contains("one named \"default\""));
    write("tokenizer_config.json", config(json!(7)));
    assert!(render().unwrap_err().to_string().contains("chat_template: expected"));
    write("tokenizer_config.json", config(json!("S{{ eos_token }}")));
    write("special_tokens_map.json", json!({ "eos_token": "</s>", "bos_token": "wrong" }).to_string());
    assert_eq!(render().unwrap(), "S</s>");
    write("chat_template.jinja", "J{{ bos_token }}{{ messages[0].content }}\n".into());
    assert_eq!(render().unwrap(), "J<s>hi");
    write("chat_template.jinja", "{% if %}".into());
    let error = render().unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja: chat_template, line 1"), "{error}");
}

#[test]
fn end_ids_are_one_id_or_a_list_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    write("config.json", json!({ "eos_token_id": 5, "bos_token_id": 1 }));
    let load = || GenerationConfig::load(dir.path());
    assert_eq!(load().unwrap().eos_token_ids, [5]);
    write(
        "generation_config.json",
        json!({ "eos_token_id": [7, 9], "temperature": 0.6, "top_k": 20, "do_sample": true }),
    );
    let config = load().unwrap();
    assert_eq!((config.eos_token_ids, config.bos_token_id), (vec![7, 9], Some(1)));
    assert_eq!((config.temperature, config.top_k, config.do_sample), (Some(0.6), Some(20), true));
    for bad in [json!("</s>"), json!([1, "x"]), json!(-1), json!(1u64 << 40)] {
        write("generation_config.json", json!({ "eos_token_id": bad }));
        let error = load().unwrap_err().to_string();
        assert!(error.contains("generation_config.json: eos_token_id: expected a token id"), "{error}");
    }
}

/// Texts that are hard to cut, each repeated to many times what a few ids need: words, digits, white space of all kinds, special
/// tokens and parts of such, characters of many bytes.
fn long_texts() -> Vec<String> {
    let parts = [
        "Four score and seven years ago, our fathers' 1863 words. ",
        "\n\n   \n \t  \r\n        ",
        "1234567890",
        "<|im_start|>user\nHi<|im_end|>\n<|im_e",
        "naïve 東京 🦀 Ωmega e\u{301} ",
        "    def f(x):\n        return x\n\n\n",
        "...!!!???---\n\n",
        "<|endoftext|>",
        "\u{13}\u{4}\u{50000}",
    ];
    let mut texts: Vec<String> = parts.iter().map(|part| part.repeat(400_000 / part.len())).collect();
    texts.push((0..40_000).map(|i| parts[(i * i + i / 7) % parts.len()]).collect::<String>());
    texts
}

#[test]
fn the_first_ids_of_a_long_text_are_those_of_all_of_it() {
    let tokenizer = Tokenizer::load(&support::smollm2()).unwrap();
    for text in long_texts() {
        let whole = tokenizer.encode(&text, true).unwrap();
        assert!(tokenizer.least_tokens(&text) > 0 && tokenizer.least_tokens(&text) <= whole.len());
        for n in [0, 1, 2, 7, 100, 1000] {
            let first = tokenizer.encode_first(&text, true, n).unwrap();
            assert_eq!(first, whole[..n], "{n} of {:?}", &text[..20]);
            let tail = tokenizer.tail(&text, n);
            assert!(text.ends_with(tail) && tail.len() < text.len(), "{n} of {:?}", &text[..20]);
            let last = tokenizer.encode(tail, true).unwrap();
            assert!(last.len() > n, "{n} of {:?}", &text[..20]);
        }
        assert_eq!(tokenizer.encode_first(&text, true, usize::MAX).unwrap(), whole);
        assert_eq!(tokenizer.tail(&text, text.len()), text);
    }
    assert_eq!(tokenizer.encode_first("a b", true, 9).unwrap(), tokenizer.encode("a b", true).unwrap());
}

#[test]
fn a_tokenizer_that_may_drop_text_promises_no_number_of_ids() {
    let text = "ab ".repeat(1000);
    let complete = |change: &dyn Fn(&mut Value)| {
        let mut json = small_tokenizer();
        let alphabet = (0..=255u8).filter(|b| !matches!(b, b'a' | b'b' | 0xc3 | 0xa9));
        // The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up in order.
        let mut others = 0x100u32..;
        for (id, byte) in (100..).zip(alphabet.map(u32::from)) {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let point = if printable { byte } else { others.next().unwrap() };
            json["model"]["vocab"][char::from_u32(point).unwrap().to_string()] = id.into();
        }
        change(&mut json);
        load(&[("tokenizer.json", json)]).1.unwrap().least_tokens(&text)
    };
    // The longest entry is `<s>`, of 3 bytes.
    assert_eq!(complete(&|_| ()), 1000);
    assert_eq!(complete(&|json| json["normalizer"] = json!({"type": "Prepend", "prepend": "_"})), 1000);
    // A byte without an id: text of it is dropped.
    assert_eq!(complete(&|json| drop(json["model"]["vocab"].as_object_mut().unwrap().remove("z"))), 1000);
    assert_eq!(complete(&|json| drop(json["model"]["vocab"].as_object_mut().unwrap().remove("Ġ"))), 667);
    let changes: [&dyn Fn(&mut Value); 5] = [
        &|json| json["added_tokens"][0]["lstrip"] = true.into(),
        &|json| json["normalizer"] = json!({"type": "NFC"}),
        &|json| json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": ""}),
        &|json| json["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
        &|json| json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert_eq!(complete(change), 0, "change {i}");
    }
}
