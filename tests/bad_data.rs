//! Datasets in every accepted form are read alike; a broken one is named by file, line, expected and found.

use ratoon::data::{Example, ReadOptions, Row, read};
use ratoon::model::Message;
use std::path::{Path, PathBuf};

fn file(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn rows(bytes: &[u8]) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    read(&file(dir.path(), bytes), &ReadOptions::default()).unwrap()
}

fn error(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = read(&file(dir.path(), bytes), &ReadOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    assert!(text.contains("rows.jsonl"), "names the file: {text}");
    text
}

fn assert_names(bytes: &[u8], parts: &[&str]) {
    let text = error(bytes);
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[test]
fn every_known_form_gives_the_conversation_it_means() {
    let chat =
        |user: &str, reply: &str| Example::Chat(vec![Message::new("user", user), Message::new("assistant", reply)]);
    let table: &[(&str, Example, Option<&str>)] = &[
        (r#"{"text":"plain"}"#, Example::Text("plain".into()), None),
        (
            r#"{"prompt":"p","completion":"c"}"#,
            Example::Completion { prompt: "p".into(), completion: "c".into() },
            None,
        ),
        (
            r#"{"prompt":[{"role":"user","content":"u"}],"completion":[{"role":"assistant","content":"a"}]}"#,
            chat("u", "a"),
            None,
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"u"}]},{"role":"assistant","content":"a"}]}"#,
            chat("u", "a"),
            None,
        ),
        (r#"{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}]}"#, chat("u", "a"), None),
        (r#"{"instruction":"i","input":"x","output":"o"}"#, chat("i\n\nx", "o"), None),
        (r#"{"instruction":"i","input":"","output":"o"}"#, chat("i", "o"), None),
        (r#"{"instruction":"i","context":"x","response":"o","category":"c"}"#, chat("i\n\nx", "o"), None),
        (r#"{"question":"q","answer":"because\n#### 1,540"}"#, chat("q", "because\n#### 1,540"), Some("1,540")),
        (r#"{"question":"q","answer":"so \\boxed{7}"}"#, chat("q", r"so \boxed{7}"), Some("7")),
        (r#"{"question":"q","answer":42}"#, chat("q", "42"), Some("42")),
        (r#"{"question":"q","answer":"a long story"}"#, chat("q", "a long story"), None),
        (
            r#"{"prompt":"p","completion":"c","answer":3}"#,
            Example::Completion { prompt: "p".into(), completion: "c".into() },
            Some("3"),
        ),
        (
            r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}],"answer":"Finnan"}"#,
            chat("u", "a"),
            Some("Finnan"),
        ),
    ];
    for (line, example, answer) in table {
        let read = rows(line.as_bytes());
        assert_eq!(read[0].example, *example, "{line}");
        assert_eq!(read[0].answer.as_deref(), *answer, "{line}");
        assert_eq!(serde_json::to_string(&read[0].fields).unwrap(), *line, "the row is kept as it was");
    }
}

#[test]
fn a_system_prompt_beside_a_conversation_is_its_first_message() {
    let roles = |line: &str| match &rows(line.as_bytes())[0].example {
        Example::Chat(turns) => turns.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let answered = ["system: s", "user: u", "assistant: a"];
    assert_eq!(roles(r#"{"system":"s","instruction":"u","input":"","output":"a"}"#), answered);
    assert_eq!(
        roles(r#"{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}],"system":"s"}"#),
        answered
    );
    assert_eq!(roles(r#"{"system":"","question":"u","answer":"a"}"#), answered[1..]);
    let own = r#"{"system":"t","messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#;
    assert_eq!(roles(own), answered);
}

#[test]
fn crlf_a_byte_order_mark_blank_lines_and_a_missing_last_line_break_change_nothing() {
    let plain = rows(b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
    let windows = rows(b"\xef\xbb\xbf{\"text\":\"a\"}\r\n\r\n  \n{\"text\":\"b\"}");
    assert_eq!(
        plain.iter().map(|r| &r.example).collect::<Vec<_>>(),
        windows.iter().map(|r| &r.example).collect::<Vec<_>>()
    );
    assert_eq!(windows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(windows.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["0", "1"]);
}

#[test]
fn ids_are_the_rows_own_where_it_has_one() {
    let read = rows(b"{\"id\":\"x\",\"text\":\"\"}\n{\"custom_id\":7,\"text\":\"\"}\n{\"text\":\"\"}\n{\"id\":null,\"text\":\"\"}\n");
    assert_eq!(read.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["x", "7", "2", "3"]);
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), b"{\"key\":\"k\",\"text\":\"\"}\n{\"text\":\"\"}\n");
    let options = ReadOptions { id_field: Some("key".into()), ..ReadOptions::default() };
    let text = read_error(&path, &options);
    assert!(text.contains("line 2") && text.contains("\"key\""), "{text}");
    assert_eq!(ratoon::data::read(&path, &ReadOptions { limit: Some(1), ..options }).unwrap()[0].id, "k");
}

fn read_error(path: &Path, options: &ReadOptions) -> String {
    read(path, options).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_an_error_and_not_zero_rows() {
    assert_names(b"", &["expected at least one JSON object", "found no row"]);
    assert_names(b"\n \r\n\n", &["found no row"]);
    assert_names(b"\xef\xbb\xbf", &["found no row"]);
}

#[test]
fn a_torn_last_line_is_an_error_unless_the_reader_resumes() {
    let torn = b"{\"text\":\"a\"}\n{\"text\":\"b";
    assert_names(torn, &["line 2", "expected a whole line", "cut short"]);
    let dir = tempfile::tempdir().unwrap();
    let options = ReadOptions { allow_torn_tail: true, ..ReadOptions::default() };
    assert_eq!(read(&file(dir.path(), torn), &options).unwrap().len(), 1);
    assert_names(b"{\"text\":\"a\"}\n{\"te\n{\"text\":\"b\"}\n", &["line 2", "expected a JSON object"]);
}

#[test]
fn lines_that_are_no_objects_are_named() {
    assert_names(b"{\"text\":\"a\"}\n[{\"text\":\"a\"}]\n", &["line 2", "expected a JSON object", "a list", "jq"]);
    assert_names(b"[\n{\"text\":\"a\"}\n]\n", &["line 1", "jq"]);
    assert_names(b"[{\"text\":\"a\"}]", &["line 1: expected a JSON object, found a list", "jq"]);
    assert_names(b"\"text\"\n", &["line 1", "a string"]);
    assert_names(b"{\n  \"text\": \"a\"\n}\n", &["line 1", "JSON objects over many lines", "jq -c '.'"]);
    assert_names(b"{'text': 1}\n", &["line 1", "column 2"]);
    assert_names(b"{\"text\":\"a\"}\nversion https://git-lfs\n", &["line 2", "expected a JSON object"]);
    assert_names("[".repeat(100_000).as_bytes(), &["line 1", "recursion limit"]);
}

/// A table as spreadsheets save it, with a byte-order mark, a comma and a line break inside a field.
const TABLE: &str = "\u{feff}prompt,completion\r\n\"a, b\",\"c\nd\"\r\n";

#[test]
fn tables_and_archives_are_named_with_the_way_to_convert_them() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path, &ReadOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    let archive = refused("rows.jsonl.gz", b"\x1f\x8b\x08\0");
    assert!(archive.contains("a gzip archive is not supported") && archive.contains("gzip -dk"), "{archive}");
    assert!(refused("rows.jsonl.zst", b"\x28\xb5\x2f\xfd").contains("zstd -dk"));
    for (name, separator) in [("my rows.csv", ","), ("rows.tsv", "\t")] {
        let table =
            TABLE.replace("prompt,", &format!("prompt{separator}")).replace("\",\"", &format!("\"{separator}\""));
        let said = refused(name, table.as_bytes());
        let (_, command) = said.split_once("one JSON object a line is: ").expect(&said);
        let converted = std::process::Command::new("sh").args(["-c", command]).current_dir(dir.path()).status();
        assert!(converted.unwrap().success(), "{command}");
        let rows = read(&dir.path().join("rows.jsonl"), &ReadOptions::default()).unwrap();
        let row = Example::Completion { prompt: "a, b".into(), completion: "c\nd".into() };
        assert_eq!(rows.iter().map(|row| &row.example).collect::<Vec<_>>(), [&row], "{name}");
    }
    // The name alone decides nothing.
    let path = dir.path().join("rows.csv");
    std::fs::write(&path, "{\"text\":\"a\"}\n").unwrap();
    assert_eq!(read(&path, &ReadOptions::default()).unwrap().len(), 1);
}

#[test]
fn a_pipe_is_refused_in_words() {
    let (reader, writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &writer, b"{\"text\":\"a\"}\n").unwrap();
    drop(writer);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let said = read(Path::new(&path), &ReadOptions::default()).unwrap_err().to_string();
    assert!(said.ends_with("expected one that can be read more than once, found a pipe"), "{said}");
}

#[test]
fn bytes_that_are_no_utf8_are_named_by_line_and_byte() {
    assert_names(b"{\"text\":\"a\"}\n{\"text\":\"\xe9t\xe9\"}\n", &["line 2", "UTF-8", "0xe9 at byte 10"]);
    assert_names(b"\xff\xfe{\x00", &["line 1", "0xff at byte 1"]);
}

#[test]
fn an_id_used_twice_names_both_lines() {
    assert_names(b"{\"id\":\"x\",\"text\":\"\"}\n{\"id\":\"x\",\"text\":\"\"}\n", &["line 2", "\"x\"", "line 1"]);
    // A given id may collide with another row's number.
    assert_names(b"{\"id\":1,\"text\":\"\"}\n{\"text\":\"\"}\n", &["line 2", "line 1"]);
    assert_names(b"{\"id\":[1],\"text\":\"\"}\n", &["line 1", "\"id\"", "a list"]);
}

#[test]
fn a_missing_or_wrong_field_names_the_keys_and_the_accepted_forms() {
    assert_names(b"{\"prompt\":\"p\",\"answr\":\"x\"}\n", &["line 1", "the keys prompt, answr", "{text}", "GSM8K"]);
    assert_names(b"{\"prompt\":\"p\",\"completion\":null}\n", &["the keys prompt, completion (null)"]);
    assert_names(b"{}\n", &["no keys"]);
    assert_names(b"{\"text\":5}\n", &["field \"text\"", "expected a string", "the number 5"]);
    assert_names(b"{\"messages\":\"hi\"}\n", &["field \"messages\"", "a list of messages", "a string"]);
    assert_names(b"{\"messages\":[]}\n", &["an empty list"]);
    assert_names(
        b"{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"judge\",\"content\":\"\"}]}\n",
        &["messages[1].role", "\"judge\""],
    );
    assert_names(b"{\"messages\":[{\"role\":\"user\"}]}\n", &["messages[0].content", "expected text", "nothing"]);
    assert_names(
        b"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}\n",
        &["messages[0].content", "parts of type text"],
    );
    assert_names(b"{\"conversations\":[{\"from\":\"human\",\"value\":1}]}\n", &["conversations[0].value"]);
}

#[test]
fn a_row_of_100_mb_is_read() {
    let long = format!("{{\"text\":\"{}\"}}\n", "x".repeat(100 << 20));
    let read = rows(long.as_bytes());
    assert!(matches!(&read[0].example, Example::Text(text) if text.len() == 100 << 20));
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_gives_the_same_rows_as_jsonl() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let schema =
        "message schema { required binary question (UTF8); optional binary answer (UTF8); required int64 id; }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |values: &[&str]| values.iter().map(|v| ByteArray::from(*v)).collect::<Vec<_>>();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&text(&["a?", "b?"]), None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&text(&["#### 1", "#### 2"]), Some(&[1, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[10, 11], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let jsonl = b"{\"question\":\"a?\",\"answer\":\"#### 1\",\"id\":10}\n{\"question\":\"b?\",\"answer\":\"#### 2\",\"id\":11}\n";
    assert_eq!(read(&path, &ReadOptions::default()).unwrap(), rows(jsonl));

    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 4, 11, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let text = read_error(&path, &ReadOptions::default());
        assert!(text.contains("rows.parquet") && text.contains("Parquet"), "{text}");
    }
}
