//! A stand-in for the Hugging Face hub: the requests that a download makes, answered from a directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
}

/// What is wrong with the hub.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    None,
    /// Every request gets this status.
    Refuses(u16),
    /// The file is listed, and its content gets this status.
    FileRefused(&'static str, u16),
    /// The connection ends in the middle of the file.
    Cut(&'static str),
    /// A proxy ends the file in its middle as if that were its end.
    CutByProxy(&'static str),
    /// The content gets a page with status 200 instead of the file.
    Page(&'static str),
    /// The file stops coming, and the connection stays.
    Stalls(&'static str),
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    trouble: Trouble,
    requests: Vec<Request>,
    /// Where contents are sent from, when it is not here.
    content_at: Option<String>,
}

/// Listens until the test's process ends.
#[derive(Clone)]
pub struct Hub {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// Serves the files of `dir` as the repository `org/tiny`, at branch `main` and its commit.
    pub fn serve(dir: &Path) -> Hub {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
        };
        let files = std::fs::read_dir(dir).unwrap().map(read).collect();
        let state = State { files, trouble: Trouble::None, requests: Vec::new(), content_at: None };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub { url: format!("http://{}", listener.local_addr().unwrap()), state: Arc::new(Mutex::new(state)) };
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = serving.clone();
                // A client that goes away is no failure of the test.
                std::thread::spawn(move || drop(hub.answer(stream.unwrap())));
            }
        });
        hub
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.state.lock().unwrap().trouble = trouble;
    }

    /// Contents come from another host, as large files do.
    pub fn content_at(&self, host: &Hub) {
        self.state.lock().unwrap().content_at = Some(host.url.clone());
    }

    pub fn remove(&self, file: &str) {
        self.state.lock().unwrap().files.remove(file).unwrap();
    }

    pub fn add(&self, file: &str, content: &[u8]) {
        self.state.lock().unwrap().files.insert(file.into(), content.to_vec());
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Names of the files whose content was asked for since the last call.
    pub fn contents(&self) -> Vec<String> {
        let content =
            |r: Request| (r.method == "GET").then(|| r.path.split_once("/resolve/").map(|(_, f)| f.to_string()));
        let name = |file: String| file.split_once('/').unwrap().1.to_string();
        let mut names: Vec<String> = self.requests().into_iter().filter_map(content).flatten().map(name).collect();
        names.sort();
        names
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        let [method, path] = [0, 1].map(|i| first.split(' ').nth(i).unwrap_or_default().to_string());
        let header = |line: String| Some(line.split_once(": ")?.1.to_string());
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let authorization = headers.into_iter().find(|line| line.to_lowercase().starts_with("authorization"));
        let request =
            Request { method: method.clone(), path: path.clone(), authorization: authorization.and_then(header) };
        let mut state = self.state.lock().unwrap();
        state.requests.push(request);
        let trouble = state.trouble;
        if let Trouble::Refuses(status) = trouble {
            return reply(&mut stream, status, "", br#"{"error": "Access to org/tiny is restricted."}"#, None);
        }
        let repository = "/api/models/org/tiny";
        if path == format!("{repository}/revision/main") || path == format!("{repository}/revision/{COMMIT}") {
            let info = serde_json::json!({"id": "org/tiny", "sha": COMMIT}).to_string();
            return reply(&mut stream, 200, "", info.as_bytes(), None);
        }
        if path == format!("{repository}/tree/{COMMIT}") {
            let file = |(path, content): (&String, &Vec<u8>)| serde_json::json!({"type": "file", "oid": "0", "size": content.len(), "path": path});
            let mut tree: Vec<_> = state.files.iter().map(file).collect();
            tree.push(serde_json::json!({"type": "directory", "oid": "0", "path": "onnx"}));
            return reply(&mut stream, 200, "", serde_json::json!(tree).to_string().as_bytes(), None);
        }
        let prefix = format!("/org/tiny/resolve/{COMMIT}/");
        let found =
            path.strip_prefix(&prefix).and_then(|name| Some((name.to_string(), state.files.get(name)?.clone())));
        let Some((name, content)) = found else {
            return reply(&mut stream, 404, "", b"", None);
        };
        let elsewhere = state.content_at.clone();
        drop(state);
        let etag = format!("ETag: \"etag-of-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
        match (trouble, method.as_str()) {
            (Trouble::FileRefused(file, status), _) if file == name => reply(&mut stream, status, &etag, b"", None),
            (_, "HEAD") => {
                let size = format!("{etag}X-Linked-Size: {}\r\n", content.len());
                reply(&mut stream, 200, &size, &content, Some(0))
            }
            _ if elsewhere.is_some() => {
                let location = format!("Location: {}{path}\r\n", elsewhere.unwrap_or_default());
                reply(&mut stream, 302, &location, b"", None)
            }
            (Trouble::Cut(file), _) if file == name => {
                reply(&mut stream, 200, &etag, &content, Some(content.len() / 2))
            }
            (Trouble::CutByProxy(file), _) if file == name => {
                reply(&mut stream, 200, &etag, &content[..content.len() / 2], None)
            }
            (Trouble::Page(file), _) if file == name => reply(&mut stream, 200, &etag, b"<html>Sign in</html>", None),
            (Trouble::Stalls(file), _) if file == name => {
                reply(&mut stream, 200, &etag, &content, Some(content.len() / 2))?;
                std::thread::sleep(std::time::Duration::from_secs(60));
                Ok(())
            }
            _ => reply(&mut stream, 200, &etag, &content, None),
        }
    }
}

/// Sends a response and ends the connection; of a body of which `sent` is given, only so many bytes.
fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8], sent: Option<usize>) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")?;
    stream.write_all(&body[..sent.unwrap_or(length)])?;
    stream.flush()
}
