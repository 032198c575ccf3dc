//! A small client of the Chrome DevTools Protocol over a pipe: one browser with one tab.
//!
//! Messages are JSON, each ended by a zero byte. Chromium reads them from its descriptor 3 and writes to 4; a
//! shell moves its standard streams there. Nothing listens on a port.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Version of axe-core, the checker of accessibility. `xtask/src/setup.rs` installs the same.
const AXE: &str = "axe-core-4.14.1";

const FLAGS: &str = "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --no-first-run \
                     --hide-scrollbars --force-color-profile=srgb --font-render-hinting=none \
                     --disable-extensions --disable-background-networking --disable-component-update \
                     --no-pings";

/// Errors of an evaluation whose page was left before it had its value.
const LEFT: [&str; 3] = [
    "Inspected target navigated or closed",
    "Execution context was destroyed.",
    "Cannot find default execution context",
];

/// Widths and themes in which pages are looked at. The layout depends on the width alone and the colours on
/// the theme alone, so these two show all there is to see.
pub(crate) const LOOKS: [(u32, &str); 2] = [(360, "dark"), (1280, "light")];

/// A browser with one tab.
pub(crate) struct Browser {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    next: u64,
    tab: String,
    events: Vec<Value>,
    axe: String,
    _profile: tempfile::TempDir,
}

/// Returns cargo's target directory, in which this test program is.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_path_buf()
}

/// Returns the parameters with which an expression is evaluated, after the promise that it may be.
fn evaluation(expression: &str) -> Value {
    json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true})
}

impl Browser {
    /// Starts Chromium.
    ///
    /// # Panics
    /// Panics if Chromium or axe-core is missing, and says how to install it.
    pub(crate) fn start() -> Self {
        let path = target().join("npm").join(AXE).join("node_modules/axe-core/axe.min.js");
        let axe = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask test` installs it with npm", path.display())
        });
        let profile = tempfile::tempdir().unwrap();
        let script = format!(
            "command -v chromium >/dev/null || exit 9; exec chromium {FLAGS} --remote-debugging-pipe \
             --user-data-dir={} about:blank 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null",
            profile.path().display()
        );
        let mut shell = Command::new("sh");
        let mut child =
            shell.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let (tab, events) = (String::new(), Vec::new());
        let mut browser = Self { child, to, from, next: 0, tab, events, axe, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        browser.tab = attached["sessionId"].as_str().unwrap().to_string();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    /// Calls a method and returns its result. Events that arrive before it are kept.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.answer(method, parameters);
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    /// Calls a method and returns its answer, which may be an error.
    fn answer(&mut self, method: &str, parameters: &Value) -> Value {
        let id = self.send(method, parameters);
        loop {
            let answer = self.read();
            if answer["id"] == id {
                return answer;
            }
            self.events.push(answer);
        }
    }

    /// Calls a method without waiting for its result, and returns the number of the call.
    fn send(&mut self, method: &str, parameters: &Value) -> u64 {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if !self.tab.is_empty() {
            message["sessionId"] = self.tab.as_str().into();
        }
        let sent = self.to.as_mut().unwrap().write_all(format!("{message}\0").as_bytes());
        sent.expect("chromium runs; Debian's package is `chromium`, and `cargo xtask test` installs it");
        self.next
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert!(
            !bytes.is_empty(),
            "chromium ended; Debian's package is `chromium`, `cargo xtask test` installs it"
        );
        bytes.pop();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Waits until an event of this name has arrived, and forgets it.
    fn wait_for(&mut self, event: &str) {
        loop {
            if let Some(at) = self.events.iter().position(|found| found["method"] == event) {
                self.events.remove(at);
                return;
            }
            let found = self.read();
            self.events.push(found);
        }
    }

    fn forget(&mut self, event: &str) {
        self.events.retain(|found| found["method"] != event);
    }

    /// Opens an address and waits until the page is loaded.
    pub(crate) fn open(&mut self, url: &str) {
        self.forget("Page.loadEventFired");
        self.call("Page.navigate", &json!({"url": url}));
        self.wait_for("Page.loadEventFired");
    }

    /// Runs an expression that leads to another page, and waits until that is loaded.
    pub(crate) fn leave_by(&mut self, expression: &str) {
        self.forget("Page.loadEventFired");
        self.call("Runtime.evaluate", &json!({"expression": expression, "userGesture": true}));
        self.wait_for("Page.loadEventFired");
    }

    /// Presses Enter, as a person does in a form, and waits for the next page.
    pub(crate) fn press_enter(&mut self) {
        self.forget("Page.loadEventFired");
        for kind in ["keyDown", "keyUp"] {
            let key = json!({
                "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r",
            });
            // The page may be gone before it answers.
            self.send("Input.dispatchKeyEvent", &key);
        }
        self.wait_for("Page.loadEventFired");
    }

    /// Presses Tab.
    pub(crate) fn press_tab(&mut self) {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            self.call("Input.dispatchKeyEvent", &key);
        }
    }

    /// Types text into the focused element.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Returns the value of an expression, after the promise that it may be.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", &evaluation(expression));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until an expression holds on the page, or on the next one if a script leaves it.
    pub(crate) fn until(&mut self, expression: &str) {
        let wait = format!(
            "new Promise((done) => {{ \
             const look = () => ({expression}) ? done(true) : setTimeout(look, 10); look(); }})"
        );
        loop {
            let answer = self.answer("Runtime.evaluate", &evaluation(&wait));
            let error = answer["error"]["message"].as_str();
            if error.is_some_and(|error| LEFT.contains(&error)) {
                continue;
            }
            assert!(error.is_none(), "{expression}: {error:?}");
            let thrown = &answer["result"]["exceptionDetails"];
            assert!(thrown.is_null(), "{expression}: {thrown}");
            return;
        }
    }

    /// Returns the text of the page.
    pub(crate) fn text(&mut self) -> String {
        self.eval("document.body.innerText").as_str().unwrap_or_default().to_string()
    }

    /// Sets the size of the window and the theme.
    pub(crate) fn show_as(&mut self, width: u32, theme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.call("Emulation.setEmulatedMedia", &media);
    }

    /// Writes a picture of the whole page to `target/console/NAME.png`.
    pub(crate) fn picture(&mut self, name: &str) {
        let size = self.call("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let shot = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let data = self.call("Page.captureScreenshot", &shot)["data"].clone();
        let folder = target().join("console");
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = STANDARD.decode(data.as_str().unwrap()).unwrap();
        std::fs::write(folder.join(Path::new(name).with_extension("png")), bytes).unwrap();
    }

    /// Adds an authenticator without a person; it verifies its user or fails to.
    pub(crate) fn add_authenticator(&mut self) -> String {
        self.call("WebAuthn.enable", &json!({"enableUI": false}));
        let options = json!({
            "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
            "hasUserVerification": true, "isUserVerified": true, "automaticPresenceSimulation": true,
        });
        let added = self.call("WebAuthn.addVirtualAuthenticator", &json!({ "options": options }));
        added["authenticatorId"].as_str().unwrap().to_string()
    }

    /// Returns what axe finds on the page that is serious or critical.
    pub(crate) fn barriers(&mut self) -> Vec<String> {
        let axe = self.axe.clone();
        self.call("Runtime.evaluate", &json!({"expression": axe}));
        let found = self.eval(
            "axe.run({resultTypes: ['violations']}).then((r) => r.violations
                .filter((v) => ['serious', 'critical'].includes(v.impact))
                .map((v) => v.id + ': ' + v.nodes.map((n) => n.html).join(' | ')))",
        );
        serde_json::from_value(found).unwrap()
    }

    /// Returns the errors of the browser's console so far, and forgets them.
    pub(crate) fn errors(&mut self) -> Vec<String> {
        let is_error = |event: &Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
            _ => false,
        };
        let found = self.events.iter().filter(|event| is_error(event)).map(Value::to_string).collect();
        self.events.retain(|event| !is_error(event));
        found
    }

    /// Returns the addresses that the browser asked for so far, and forgets them.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let sent = "Network.requestWillBeSent";
        let of = |event: &&Value| event["method"] == sent;
        let url = |event: &Value| event["params"]["request"]["url"].as_str().unwrap_or_default().to_string();
        let found = self.events.iter().filter(of).map(url).collect();
        self.forget(sent);
        found
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its pipe.
        self.to = None;
        let _ = self.child.wait();
    }
}
