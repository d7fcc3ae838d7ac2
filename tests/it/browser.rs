//! A browser without a window, driven over the DevTools protocol.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use base64::prelude::{BASE64_STANDARD, Engine};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket, client};

use crate::node::Folder;
use crate::support::*;

/// A browser is a large program, and slow where many others run.
const PATIENCE: Duration = Duration::from_secs(120);

/// A name that leads to this address, as an attacker's does once its page is loaded.
pub(crate) const REBOUND: &str = "rebound.test";
pub(crate) const REBOUND_TO: &str = "127.0.0.37";

/// One tab of a browser process that ends with this.
pub(crate) struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    session: String,
    calls: u64,
    /// What the page asked for, and what it complained of.
    requests: Vec<String>,
    complaints: Vec<String>,
    _profile: Folder,
}

impl Browser {
    /// Starts Debian's `chromium`, with an empty profile.
    pub(crate) fn start(test: &str) -> Self {
        let profile = Folder::new(&format!("{test}-browser"));
        let mut command = Command::new("chromium");
        // Without a sandbox, since root has none: it shows nothing but our own page. And without
        // the things that a browser asks of the network by itself.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-sync"]);
        command.args(["--disable-component-update", "--no-proxy-server", "--hide-scrollbars"]);
        command.arg(format!(
            "--host-resolver-rules=MAP {REBOUND} {REBOUND_TO}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.*"
        ));
        command.arg(format!("--user-data-dir={}", profile.path("profile")));
        command.args(["--remote-debugging-port=0", "about:blank"]);
        // A group of its own, so that all its processes can be ended together.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("`make test-page` installs chromium");
        let lines = Lines::of(child.stderr.take().unwrap());
        let line = lines.line_within(PATIENCE, "DevTools listening on ");
        let url = &line[line.find("ws://").unwrap()..];
        let address = url.split('/').nth(2).unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = client(url, stream).unwrap();
        let mut browser = Self {
            child,
            socket,
            session: String::new(),
            calls: 0,
            requests: Vec::new(),
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let tab = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", tab);
        browser.session = session["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method of the protocol.
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, String> {
        self.calls += 1;
        let mut call = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.session.is_empty() {
            call["sessionId"] = self.session.as_str().into();
        }
        self.socket.send(Message::text(call.to_string())).unwrap();
        let start = Instant::now();
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    return Err("no answer".into());
                }
                Err(error) => panic!("the browser is gone: {error}"),
            };
            let Ok(text) = message.into_text() else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == self.calls {
                return match message.get("error") {
                    Some(error) => Err(error.to_string()),
                    None => Ok(message["result"].clone()),
                };
            }
            self.note(&message);
            if start.elapsed() > PATIENCE {
                return Err("no answer, only events".into());
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(parameters["request"]["url"].as_str().unwrap().into());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters.to_string()),
            // A front that says no, or nothing, is what some tests are about.
            Some("Log.entryAdded")
                if parameters["entry"]["level"] == "error"
                    && parameters["entry"]["source"] != "network" =>
            {
                self.complaints.push(parameters.to_string());
            }
            _ => {}
        }
    }

    pub(crate) fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(opened.get("errorText"), None, "{url}");
    }

    /// The value of a JavaScript expression.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        self.try_eval(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_eval(&mut self, expression: &str) -> Result<Value, String> {
        let question =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.try_call("Runtime.evaluate", question)?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(details.to_string()),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Waits until a condition holds in the page, which looks by itself.
    pub(crate) fn wait_until(&mut self, condition: &str) {
        let expression = format!(
            "new Promise(done => {{
                 const look = () => ({condition}) ? done(true) : setTimeout(look, 10);
                 look();
             }})"
        );
        let start = Instant::now();
        // A page that is left forgets what it was asked; and one that is not there yet has no
        // element to look at.
        while self.try_eval(&expression) != Ok(true.into()) {
            if start.elapsed() > PATIENCE {
                let text = self.try_eval("document.body.innerText");
                panic!("waited in vain: {condition}; the page says: {text:?}");
            }
        }
    }

    /// The text of the first element that a selector finds.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({selector:?}).textContent"));
        text.as_str().unwrap().into()
    }

    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        self.eval(&format!("document.querySelectorAll({selector:?}).length")).as_u64().unwrap()
    }

    /// Presses a key of the keyboard that has a name.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            _ => panic!("which key is {key}?"),
        };
        let event = |kind| {
            json!({
                "type": kind, "key": key, "code": key, "text": text,
                "windowsVirtualKeyCode": code,
            })
        };
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        self.call("Input.dispatchKeyEvent", event(down));
        self.call("Input.dispatchKeyEvent", event("keyUp"));
    }

    /// Types a text where the focus is.
    pub(crate) fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    pub(crate) fn resize(&mut self, width: u32, height: u32, scale: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": scale > 1,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub(crate) fn prefer_dark(&mut self) {
        let features = json!([{ "name": "prefers-color-scheme", "value": "dark" }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Saves a picture of the whole page.
    pub(crate) fn screenshot(&mut self, file: &Path) -> io::Result<()> {
        // What moves comes to its end first.
        self.wait_until("document.getAnimations().every(each => each.playState === 'finished')");
        let picture = json!({ "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", picture);
        fs::write(file, BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap())
    }

    /// Whether the page has complained of nothing, and asked nobody but `front`.
    pub(crate) fn check_quiet(&mut self, front: &str) {
        self.eval("0"); // takes in what has happened
        assert!(self.complaints.is_empty(), "{:?}", self.complaints);
        let own = |url: &String| url.starts_with(front) || url == "data:,";
        assert!(self.requests.iter().all(own), "{:?}", self.requests);
        assert!(!self.requests.is_empty());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
