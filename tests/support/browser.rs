//! A real browser: headless Chromium, driven through chromedriver by the WebDriver protocol.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Long enough for a machine that is busy with other things; only a failure takes that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two checks of a condition. A test waits for a condition, not for a time.
const PAUSE: Duration = Duration::from_millis(50);

pub const ENTER: &str = "\u{e007}";
pub const TAB: &str = "\u{e004}";

/// One browser at a time: each takes the better part of a processor.
static TURN: Mutex<()> = Mutex::new(());

/// A browser with one page. Both processes are ended when it is dropped, whatever happened.
pub struct Browser {
    driver: Driver,
    agent: ureq::Agent,
    session: String,
    profile: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

struct Driver {
    process: Child,
    url: String,
    ended: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A clean end, if possible; the driver's end closes it anyway.
        let _ = self.agent.delete(&self.session).call();
        self.driver.end();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

impl Driver {
    fn end(&mut self) {
        if self.ended {
            return;
        }
        let group = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        // The browser is in the group of its driver.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.process.wait();
        self.ended = true;
    }

    fn start() -> Self {
        use std::os::unix::process::CommandExt;
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "chromedriver cannot be run ({error}). These tests need a browser: \
                     apt-get install chromium chromium-driver"
                )
            });
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut driver = Self {
            process,
            url: String::new(),
            ended: false,
        };
        for line in lines {
            let line = line.unwrap();
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                driver.url = format!("http://127.0.0.1:{}", port.trim_end_matches('.'));
                return driver;
            }
        }
        panic!("chromedriver ended before it said its port");
    }
}

impl Browser {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments for Chromium.
    pub fn with(more: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("wh-browser-{}-{n}", std::process::id()));
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = Driver::start();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let profile_argument = format!("--user-data-dir={}", profile.display());
        let mut arguments = vec![
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1440,900",
            &profile_argument,
        ];
        arguments.extend(more);
        let wish = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }}});
        let mut browser = Self {
            session: format!("{}/session", driver.url),
            driver,
            agent,
            profile,
            _turn: turn,
        };
        let begun = browser.post("", &wish);
        let id = begun["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/session/{id}", browser.driver.url);
        browser
    }

    fn post(&self, what: &str, body: &Value) -> Value {
        let answer = self.agent.post(format!("{}{what}", self.session));
        let answer = answer
            .header("Content-Type", "application/json")
            .send(body.to_string());
        Self::value(what, answer)
    }

    fn get(&self, what: &str) -> Value {
        let answer = self.agent.get(format!("{}{what}", self.session)).call();
        Self::value(what, answer)
    }

    fn value(what: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Value {
        let mut answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        let text = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string();
        let mut said: Value = serde_json::from_str(&text.unwrap()).unwrap();
        assert!(answer.status().is_success(), "{what}: {said}");
        said["value"].take()
    }

    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    pub fn refresh(&self) {
        self.post("/refresh", &json!({}));
    }

    pub fn url(&self) -> String {
        self.get("/url").as_str().unwrap().to_owned()
    }

    /// The result of this JavaScript.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The value of this expression.
    pub fn eval(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});"))
    }

    pub fn text(&self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({selector:?})?.innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// All text of the page.
    pub fn page(&self) -> String {
        self.text("body")
    }

    /// Waits until this expression is true.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        let begun = Instant::now();
        while self.eval(&format!("!!({expression})")) != json!(true) {
            assert!(
                begun.elapsed() < PATIENCE,
                "never so: {expression}; the page says:\n{}\n{:?}",
                self.page(),
                self.complaints()
            );
            std::thread::sleep(PAUSE);
        }
    }

    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, wanted: &str) {
        self.wait(&format!(
            "[...document.querySelectorAll({selector:?})].some(e => e.checkVisibility() && e.textContent.includes({}))",
            json!(wanted)
        ));
    }

    /// A real click with a mouse.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.post(
            "/element",
            &json!({"using": "css selector", "value": selector}),
        );
        let id = element.as_object().unwrap().values().next().unwrap();
        self.post(
            &format!("/element/{}/click", id.as_str().unwrap()),
            &json!({}),
        );
    }

    /// Real key presses, for the element that has the focus.
    pub fn keys(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                let key = key.to_string();
                [
                    json!({"type": "keyDown", "value": key}),
                    json!({"type": "keyUp", "value": key}),
                ]
            })
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.post("/actions", &actions);
    }

    /// Calls this method of the devtools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let what = json!({"cmd": command, "params": parameters});
        self.post("/goog/cdp/execute", &what)
    }

    pub fn size(&self, width: u32, height: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    pub fn dark(&self, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// A screenshot, as PNG in base64.
    pub fn picture(&self) -> String {
        let picture = self.get("/screenshot");
        picture.as_str().unwrap().to_owned()
    }

    pub fn save_picture(&self, path: &Path) {
        std::fs::write(path, decode(&self.picture())).unwrap();
    }

    /// The messages of the browser's console since the last call: errors, and what was blocked.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

/// Base64, as WebDriver sends pictures.
fn decode(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let mut bytes = Vec::new();
    for four in digits.chunks(4) {
        let bits = four
            .iter()
            .fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}
