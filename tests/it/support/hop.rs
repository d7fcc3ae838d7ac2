//! What stands between nodes and reads HTTP: a proxy, a cache, a service mesh.
//!
//! A hop asks the node behind it what it was asked, and sends the answer on. Header names come out in
//! small letters, as HTTP/2 has them. All else that real ones do is up to each test, by what it does
//! with the question and the answer.

use std::net::SocketAddr;

use super::{Answer, Client, Question, Stub, url_of};

/// A hop to the node at that address. `treat` is given each question, and a function that asks the node.
pub(crate) fn hop(
    target: SocketAddr,
    treat: impl Fn(&Question, &dyn Fn(&Question) -> Answer) -> Vec<u8> + Send + Sync + 'static,
) -> Stub {
    let target = url_of(target);
    Stub::asked(move |question| treat(question, &|question| passed_on(&target, question)))
}

fn passed_on(target: &str, question: &Question) -> Answer {
    let headers: Vec<_> = question.headers().collect();
    let mut client = Client::connect(target);
    client.send_with(question.target(), &headers, &question.body);
    client.answer()
}

impl Answer {
    /// An answer of the hop's own.
    pub(crate) fn of_a_hop(status: u16, text: &str) -> Self {
        let headers = [("content-type".into(), "text/plain".into())].into();
        Self { status, headers, body: text.into() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    pub(crate) fn without(mut self, is_dropped: impl Fn(&str) -> bool) -> Self {
        self.headers.retain(|name, _| !is_dropped(name));
        self
    }

    /// As it is sent on.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        if self.status != 204 && !self.headers.contains_key("transfer-encoding") {
            let length = self.body.len().to_string();
            self.headers.insert("content-length".into(), length);
        }
        let lines = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let head = format!("HTTP/1.1 {} Status\r\n{}\r\n", self.status, lines.collect::<String>());
        [head.as_bytes(), &self.body].concat()
    }

    /// The same in chunks of seven bytes.
    pub(crate) fn chunked(self) -> Vec<u8> {
        let chunk =
            |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        let chunks: Vec<_> = self.body.chunks(7).map(chunk).collect();
        let body = [&chunks.concat()[..], b"0\r\n\r\n"].concat();
        let answer = Self { body, ..self }.without(|name| name == "content-length");
        answer.with("transfer-encoding", "chunked").bytes()
    }
}
