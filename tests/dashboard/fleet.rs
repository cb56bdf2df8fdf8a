//! The page of a fleet, and what its readers need: stable rows, whole ids, addresses, reasons.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::farm::Farm;
use crate::support::store::TestStore;
use crate::{assert_calm, row};
use serde_json::{Value, json};
use worker_heartbeat::fleet::{Beat, ProcessIdentity, Registration, Stop, StoredEnding};
use worker_heartbeat::{DeathCause, HeartbeatStore, MemoryStore, State, Thresholds};

fn register(store: &impl HeartbeatStore, workers: &[(&str, &str, String, State)]) {
    let registrations = workers.iter().map(|(worker_type, group, id, _)| {
        let mut registration = Registration::new(*worker_type, id);
        registration.info.group = (*group).to_owned();
        let mut process = ProcessIdentity::default();
        process.hostname = (*group).to_owned();
        process.pid = 4711;
        registration.info.process = Some(process);
        // However long the test waits for its browser.
        registration.info.thresholds = Some(Thresholds::new(Duration::from_secs(3_600)));
        registration
    });
    let registrations: Vec<_> = registrations.collect();
    for (chunk, workers) in registrations.chunks(1_000).zip(workers.chunks(1_000)) {
        let keys = store.register(chunk).unwrap();
        let beats = keys
            .into_iter()
            .zip(workers)
            .map(|(key, (_, _, _, state))| {
                let mut beat = Beat::new(key, *state);
                beat.heartbeat_age = Some(Duration::ZERO);
                beat
            });
        store.beat(&beats.collect::<Vec<_>>()).unwrap();
    }
}

/// The last of them by id are stalled and dead.
fn large(store: &impl HeartbeatStore) {
    let states = [State::Idle, State::Processing, State::Active];
    let workers = (0..20_000).map(|n| {
        let group = ["host-10", "host-2", "host-1"][n % 3];
        let state = if n >= 19_990 {
            State::Stalled
        } else {
            states[n % 3]
        };
        ("poller", group, format!("poller-{n:05}"), state)
    });
    register(store, &workers.collect::<Vec<_>>());
    let dead = (
        "mailer",
        "host-2",
        "z-mailer-1".to_owned(),
        State::Processing,
    );
    register(store, &[dead]);
    end(store, "z-mailer-1");
}

fn end(store: &impl HeartbeatStore, id: &str) {
    let key = store.find(id).unwrap().unwrap().key;
    let cause = DeathCause::Failed {
        error: "no space left on device".into(),
    };
    store
        .stop(&[Stop::new(key, StoredEnding::dead(&cause))])
        .unwrap();
}

const SHOWN: &str = "document.querySelectorAll('.worker').length";

#[test]
fn of_a_large_store_the_page_shows_the_worst_and_finds_all() {
    let store = MemoryStore::new();
    large(&store);
    let farm = Farm::new();
    let server = farm.serve_with(|endpoint| endpoint.fleet(store));
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait(&format!("{SHOWN} === 1000"));
    let summary = browser.text("#summary");
    assert_eq!(
        summary,
        "11 of 20,001 workers need attention: 1 dead, 10 stalled"
    );
    assert_eq!(browser.text("#count"), "(the worst 1,000 of 20,001)");
    browser.wait_for_text("#advice", "Open a worker to see where it hangs");
    // The unwell groups come first, the others in the order of their numbers.
    let groups =
        browser.eval("[...document.querySelectorAll('#groups bdi')].map(e => e.textContent)");
    assert_eq!(groups, json!(["host-1", "host-2", "host-10"]));

    // The filter, the search and the pages are the store's.
    browser.run("[...document.querySelectorAll('#states button')].find(b => b.innerText === '10 stalled').click()");
    browser.wait(&format!("{SHOWN} === 10"));
    browser.click("#clear");
    browser.keys("LER-19");
    browser.wait(&format!("{SHOWN} === 1000"));
    browser.wait("document.querySelector('#count').innerText.startsWith('(1,000 of') || document.querySelector('#count').innerText.startsWith('(the worst 1,000 that')");
    browser.keys("123");
    browser.wait(&format!("{SHOWN} === 1 && {}", row("poller-19123")));
    assert!(browser.url().contains("q=LER-19123"));
    browser.click("#clear");
    browser.wait_for_text("#next", "Show the next 1,000");
    browser.click("#next");
    browser.wait(&row("poller-01500"));
    assert_eq!(browser.text("#count"), "(1,000 on this page, of 20,001)");
    browser.refresh();
    browser.wait(&row("poller-01500"));
    browser.click("#first");
    browser.wait(&row("z-mailer-1"));

    // Any worker can be opened, and handed on by its address.
    browser.open("about:blank");
    browser.open(&format!("{}#worker=poller-17777", server.url));
    browser.wait_for_text("#pinned", "4711 on host-1");
    assert!(browser.url().ends_with("#worker=poller-17777"));
    browser.click("#pinned .close");
    browser.wait("!document.querySelector('#pinned').firstChild");
    browser.run("window.draws = []; setInterval(() => { if (window.drawTook) { window.draws.push(window.drawTook); window.drawTook = 0; } }, 20)");
    browser.wait("window.draws.length >= 3");
    println!(
        "20,001 workers in a store: drawing took {} ms",
        browser.eval("window.draws")
    );
    assert_calm(&browser, &server.url);
}

#[test]
fn rows_keep_their_places_while_somebody_reads() {
    let farm = Farm::new();
    let start = |n: usize| {
        farm.worker("crawler")
            .id(format!("crawler-{n}"))
            .start()
            .unwrap()
    };
    let mut workers: Vec<_> = (1..=4).map(start).collect();
    workers.iter().for_each(|hb| hb.beat());
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait(&format!("{SHOWN} === 4"));
    browser.run(&format!(
        "{}.querySelector('.open').focus()",
        row("crawler-1")
    ));
    workers[2].fail("no luck");
    browser.wait(&format!("{}.classList.contains('bad')", row("crawler-3")));
    assert_eq!(
        crate::page::ids(&browser),
        ["crawler-1", "crawler-2", "crawler-3", "crawler-4"]
    );
    // A worker that is gone keeps its place, too.
    workers.remove(1).stop();
    farm.registry.purge(Duration::ZERO);
    browser.wait(&format!("{}.classList.contains('gone')", row("crawler-2")));
    let fifth = start(5);
    fifth.beat();
    browser.wait(&row("crawler-5"));
    assert_eq!(crate::page::ids(&browser).len(), 5);
    browser.wait_for_text("#again", "have moved");
    browser.click("#again");
    browser.wait(&format!("{SHOWN} === 4"));
    assert_eq!(
        crate::page::ids(&browser),
        ["crawler-3", "crawler-1", "crawler-4", "crawler-5"]
    );

    // A page that nobody touches orders itself.
    browser.run("document.activeElement.blur(); document.body.dataset.hold = '0'");
    fifth.fail("no luck either");
    browser.wait("document.querySelectorAll('.worker .c-id')[1].textContent === 'crawler-5'");
    assert_calm(&browser, &server.url);
}

#[test]
fn ids_are_whole_to_readers_and_the_clipboard() {
    let farm = Farm::new();
    let long = |end: &str| format!("fleetA-billing-reconciliation-of-the-european-union-{end}");
    let workers = ["000001", "000002"].map(|end| farm.worker("x").id(long(end)).start().unwrap());
    workers.iter().for_each(|hb| hb.beat());
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait(&format!("{SHOWN} === 2"));
    let id = long("000002");
    let cell = format!("{}.querySelector('.c-id bdi')", row(&id));
    // Its end is to be seen, and its middle is cut.
    let seen = browser.eval(&format!(
        "(cell => {{ const end = cell.lastChild.getBoundingClientRect(), all = cell.getBoundingClientRect(), start = cell.firstChild;
           return [end.right <= all.right + 1 && end.width > 0, start.scrollWidth > start.clientWidth, cell.title]; }})({cell})"
    ));
    assert_eq!(seen, json!([true, true, id]));
    let selected = browser.eval(&format!(
        "(getSelection().selectAllChildren({cell}), getSelection().toString())"
    ));
    assert_eq!(selected, json!(id));
    // A click that selects opens nothing; any other click on the row opens it.
    browser.run(&format!("{cell}.click()"));
    assert_eq!(browser.eval("document.querySelectorAll('.more').length"), 0);
    browser.run(&format!("getSelection().removeAllRanges(); {cell}.click()"));
    browser.wait_for_text(".more dd", &id);
    assert!(
        browser.url().ends_with(&format!("#worker={id}")),
        "{}",
        browser.url()
    );
    browser.run("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }");
    browser.click(".more .copy");
    browser.wait(&format!("window.copied === {}", json!(id)));
    browser.run(&format!("{cell}.click()"));
    browser.wait("!document.querySelector('.more')");

    // The slash goes to the filter; ages tell their time, with the zone.
    browser.run("document.activeElement.blur()");
    browser.keys("/");
    browser.wait("document.activeElement.id === 'filter'");
    browser.keys("/");
    assert_eq!(browser.eval("document.querySelector('#filter').value"), "/");
    browser.click("#clear");
    browser.wait(&format!("{SHOWN} === 2"));
    let title = browser.eval(&format!(
        "(age => (age.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }})), age.title))({}.querySelector('.heartbeat'))",
        row(&id)
    ));
    assert!(title.as_str().unwrap().contains(':'), "{title}");
    assert_calm(&browser, &server.url);
}

#[test]
fn events_have_levels_and_open_their_worker() {
    let farm = Farm::new();
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait_for_text("#empty", "WorkerHeartbeat::builder");
    let hb = farm.worker("crawler").id("crawler-1").start().unwrap();
    hb.beat();
    hb.fail("no luck");
    browser.wait_for_text("#log .error", "failed: no luck");
    let levels = |browser: &Browser| {
        browser.eval("[...new Set([...document.querySelectorAll('#log li')].filter(e => e.checkVisibility()).map(e => e.className))].sort()")
    };
    let choose = |level: &str| {
        browser.run(&format!(
            "const s = document.querySelector('#level'); s.value = {level:?}; s.dispatchEvent(new Event('change'))"
        ));
    };
    choose("error");
    assert_eq!(levels(&browser), json!(["error"]));
    assert!(browser.url().ends_with("#level=error"));
    choose("debug");
    assert!(levels(&browser).as_array().unwrap().len() > 1);
    browser.run("document.querySelector('#log .error button').click()");
    browser.wait_for_text(".more dd", "ended, and not started again");
    assert_calm(&browser, &server.url);
}

#[test]
fn a_page_without_a_stream_says_why() {
    let farm = Farm::new();
    let server = farm.serve();
    let address: SocketAddr = server.server.local_addr();
    let mut taken: Vec<_> = (0..64).map(|_| crate::streams::watch(address)).collect();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait_for_text("#link", "Refused");
    browser.wait_for_text("#warnings", "all 64 streams are in use");
    taken.clear();
    browser.wait_for_text("#link", "Live");
    browser.wait("document.querySelector('#warnings').innerText === ''");
}

/// Landmarks: what axe-core's rules on them require.
const LANDMARKS: &str = r"
const faults = [], landmark = 'header, main, nav, aside, footer, [role=banner], [role=main]';
for (const [tag, n] of [['main', 1], ['h1', 1], ['body > header', 1]]) if (document.querySelectorAll(tag).length !== n) faults.push(tag);
for (const e of document.querySelectorAll('body *')) {
  if (e.closest('script, style, template, noscript')) continue;
  if ([...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest(landmark)) faults.push(e.outerHTML.slice(0, 80));
}
for (const e of document.querySelectorAll('section')) if (!document.getElementById(e.getAttribute('aria-labelledby'))) faults.push('unnamed section');
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
if (new Set(ids).size !== ids.length) faults.push('an id occurs twice');
return faults;";

/// What can be touched, and is smaller than 24 pixels.
const SMALL: &str = r"
const all = document.querySelectorAll('button, summary, select, input, a');
return [...all].filter(e => e.checkVisibility() && !e.closest('.skip')).map(e => [e.getBoundingClientRect(), e])
  .filter(([box, e]) => box.width && (box.width < 24 || box.height < 24)).map(([box, e]) => e.outerHTML.slice(0, 90) + ' ' + box.width + 'x' + box.height);";

#[test]
fn on_a_phone_the_unwell_come_first_and_all_can_be_touched() {
    let farm = Farm::new();
    let _workers = farm.one_in_each_state();
    let store = MemoryStore::new();
    register(
        &store,
        &[
            ("poller", "host-2", "poller-1".to_owned(), State::Idle),
            ("poller", "host-10", "poller-2".to_owned(), State::Stalled),
        ],
    );
    let server = farm.serve_with(|endpoint| endpoint.fleet(store));
    let browser = Browser::start();
    browser.size(390, 844);
    for (view, workers) in [("fleet", 2), ("process", 9)] {
        browser.open("about:blank");
        browser.open(&format!("{}#view={view}", server.url));
        browser.wait(&format!("{SHOWN} >= {workers}"));
        browser.wait("document.querySelector('.worker').classList.contains('bad')");
        assert_eq!(
            browser.eval("document.querySelectorAll('.fold[open]').length"),
            0
        );
        let first =
            browser.eval("document.querySelector('#workers .worker').getBoundingClientRect().top");
        assert!(first.as_f64().unwrap() < 1_200.0, "{first}");
        browser.run("document.querySelectorAll('.fold').forEach(fold => { fold.open = true; }); document.querySelector('.open').click()");
        browser.wait("document.querySelectorAll('.more dt').length > 5");
        assert_eq!(browser.run(SMALL), json!([]), "{view}");
        assert_eq!(browser.run(LANDMARKS), json!([]), "{view}");
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= 390, "{wide}");
        axe(&browser);
    }
}

/// With `AXE=path/to/axe.min.js` (npm package axe-core), its rules too.
fn axe(browser: &Browser) {
    let Some(path) = std::env::var_os("AXE") else {
        return;
    };
    browser.run(&std::fs::read_to_string(path).unwrap());
    browser.run("window.found = null; axe.run(document).then(result => { window.found = result.violations; })");
    browser.wait("window.found !== null");
    let found = browser.eval(
        "window.found.map(v => v.id + ': ' + v.help + ' ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)).join(' | '))",
    );
    assert_eq!(
        found,
        json!([]),
        "{}",
        serde_json::to_string_pretty(&found).unwrap()
    );
}

#[test]
fn an_empty_store_says_how_a_worker_gets_in() {
    let farm = Farm::new();
    let store = TestStore::default();
    let server = farm.serve_with(|endpoint| endpoint.fleet(store.clone()));
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait_for_text(
        "#empty",
        "No process has registered a worker in this store yet.",
    );
    browser.wait_for_text("#empty code", "registry.attach(store, FleetConfig::new())?");
    register(&store, &[("x", "host", "x-1".to_owned(), State::Idle)]);
    browser.wait(&row("x-1"));
    assert_eq!(
        browser.eval("document.querySelector('#empty').hidden"),
        true
    );
    assert_eq!(
        browser.eval("document.querySelector('#empty').innerText"),
        Value::from("")
    );
    assert_calm(&browser, &server.url);
}

/// `DASHBOARD_PICTURES=folder`: the page of a fleet, light, dark, on a phone, and with 20,000 workers.
#[test]
fn pictures_are_made_of_fleets() {
    let folder = std::env::var_os("DASHBOARD_PICTURES");
    let farm = Farm::new();
    let small = MemoryStore::new();
    let workers = (1..=36_usize).map(|n| {
        let (worker_type, group) = (
            ["indexer", "mailer", "importer"][n % 3],
            format!("host-{}", n % 12 + 1),
        );
        let state = [State::Idle, State::Processing, State::Active][n % 3];
        let state = if n == 17 { State::Stalled } else { state };
        (
            worker_type,
            group,
            format!("{worker_type}-production-eu-central-{n:04}"),
            state,
        )
    });
    let workers: Vec<_> = workers.collect();
    let borrowed: Vec<_> = workers
        .iter()
        .map(|(worker_type, group, id, state)| (*worker_type, group.as_str(), id.clone(), *state))
        .collect();
    register(&small, &borrowed);
    for (_, _, id, _) in &workers[8..11] {
        end(&small, id);
    }
    let many = MemoryStore::new();
    large(&many);
    let browser = Browser::with(&["--hide-scrollbars"]);
    for (store, pictures) in [
        (
            small,
            &[
                ("light", false, 1440, 900),
                ("dark", true, 1440, 900),
                ("phone", false, 390, 844),
            ][..],
        ),
        (many, &[("20000", false, 1440, 900)][..]),
    ] {
        let server = farm.serve_with(|endpoint| endpoint.fleet(store));
        for (name, dark, width, height) in pictures {
            browser.dark(*dark);
            browser.size(*width, *height);
            browser.open("about:blank");
            browser.open(&server.url);
            browser.wait_for_text("#summary", "need attention");
            browser.wait(&format!("{SHOWN} >= 36"));
            browser.wait("await_frames = (window.await_frames || 0) + 1, window.await_frames > 3");
            assert!(browser.picture().len() > 20_000, "an empty page");
            if let Some(folder) = &folder {
                browser.save_picture(&Path::new(folder).join(format!("{name}.png")));
            }
        }
    }
}
