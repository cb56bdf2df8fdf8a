//! Random interleavings of the public operations against a plain, single-threaded model.
//!
//! The model knows no cells, no ticks and no threads. It keeps, for each worker, its last sign of
//! progress, and how much time can have been charged to it since: exactly what `advance` moved, and
//! of what `suspend` moved, anything from zero to two resolutions.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{SECOND, World, eventually};
use proptest::prelude::*;
use worker_heartbeat::{
    Activity, BoxError, GroupState, Probe, Restart, SilenceGuard, State, SupervisedWorker,
    Supervisor, TaskGuard, WorkerHeartbeat,
};

/// Charged time: the least and the most that it can be.
#[derive(Clone, Copy, Debug, Default)]
struct Charged {
    least: Duration,
    most: Duration,
}

#[derive(Clone, Debug)]
struct Model {
    stale_after: Duration,
    stall_after: Option<Duration>,
    task_deadline: Option<Duration>,
    grace: Duration,
    beats_only: bool,
    silent: Charged,
    /// The rest of an announced silence, and the allowance that it sets.
    silence: Option<Duration>,
    beaten: bool,
    activity: Activity,
    /// The open tasks, the innermost last.
    tasks: Vec<Open>,
    ended: Option<State>,
    beats: u64,
    incarnation: u32,
    group: &'static str,
}

/// An open task.
#[derive(Clone, Debug)]
struct Open {
    /// The number of its guard; `None` without one.
    guard: Option<usize>,
    run: String,
    activity: Activity,
    progress: Option<(u64, u64)>,
    age: Charged,
}

impl Model {
    fn update(&mut self, run: String, activity: Activity) {
        let ended = self.ended.is_some();
        match self.tasks.last_mut().filter(|_| !ended) {
            Some(task) => {
                if task.run != run {
                    (task.progress, task.age) = (None, Charged::default());
                }
                (task.run, task.activity) = (run, activity);
            }
            None => self.open(None, run, activity),
        }
        self.be(activity);
    }

    fn open(&mut self, guard: Option<usize>, run: String, activity: Activity) {
        if self.ended.is_none() {
            self.tasks.push(Open {
                guard,
                run,
                activity,
                progress: None,
                age: Charged::default(),
            });
        }
    }

    fn begin(&mut self, guard: usize, run: String) {
        let gives_way = self.tasks.last().is_some_and(|task| task.guard.is_none());
        let before = if gives_way { self.tasks.pop() } else { None };
        let goes_on = before.filter(|task| task.run == run);
        self.open(Some(guard), run, Activity::Processing);
        if let (Some(before), Some(task)) = (goes_on, self.tasks.last_mut()) {
            (task.progress, task.age) = (before.progress, before.age);
        }
        self.be(Activity::Processing);
    }

    fn close(&mut self, guard: usize) {
        let before = self.tasks.len();
        if self.ended.is_none() {
            self.tasks.retain(|task| task.guard != Some(guard));
        }
        if self.tasks.len() < before {
            let at = self.tasks.last().map(|task| task.activity);
            self.be(at.unwrap_or(Activity::Idle));
        }
    }

    fn rest(&mut self) {
        if self.ended.is_none() {
            self.tasks.clear();
        }
        self.be(Activity::Idle);
    }

    fn sign(&mut self) {
        if self.ended.is_none() {
            self.beaten = true;
            self.beats += 1;
            self.silent = Charged::default();
        }
    }

    fn be(&mut self, activity: Activity) {
        if self.ended.is_none() {
            self.activity = activity;
        }
        self.sign();
    }

    fn end(&mut self, state: State) {
        self.ended.get_or_insert(state);
    }

    fn pass(&mut self, least: Duration, most: Duration) {
        let ages = self.tasks.iter_mut().map(|task| &mut task.age);
        for charged in ages.chain([&mut self.silent]) {
            charged.least += least;
            charged.most += most;
        }
    }

    /// Which states may be reported of a worker that is not silent for too long: this one, unless one of
    /// its tasks takes too long.
    fn before_silence(&self, before: State, slack: Duration) -> Vec<State> {
        let deadline = self
            .task_deadline
            .filter(|_| self.activity != Activity::Idle);
        let Some(deadline) = deadline else {
            return vec![before];
        };
        let mut allowed = Vec::new();
        if self
            .tasks
            .iter()
            .all(|task| task.age.least <= deadline + slack)
        {
            allowed.push(before);
        }
        if self.tasks.iter().any(|task| task.age.most > deadline) {
            allowed.push(State::Overdue);
        }
        allowed
    }

    /// Which states may be reported. `slack`: how late a conviction may be.
    fn allowed(&self, slack: Duration) -> Vec<State> {
        if let Some(state) = self.ended {
            return vec![state];
        }
        let well = match self.activity {
            Activity::Idle => State::Idle,
            Activity::Processing => State::Processing,
            _ => State::Active,
        };
        let (before, after, limit) = if !self.beaten {
            (State::Starting, State::NeverStarted, Some(self.grace))
        } else if self.beats_only {
            (well, State::Stale, Some(self.stale_after))
        } else if self.activity == Activity::Idle {
            (well, well, None)
        } else {
            (well, State::Stalled, self.stall_after)
        };
        let Some(limit) = limit else {
            return self.before_silence(before, slack);
        };
        let limit = if self.beaten {
            limit.max(self.silence.unwrap_or_default())
        } else {
            limit
        };
        let mut allowed = Vec::new();
        if self.silent.least <= limit + slack {
            allowed.extend(self.before_silence(before, slack));
        }
        if self.silent.most > limit {
            allowed.push(after);
        }
        allowed
    }
}

/// An action of a worker within a step, with guards that nest or overlap.
#[derive(Clone, Debug)]
enum Nested {
    Begin(u8),
    End(prop::sample::Index),
    Update(u8),
    Idle,
    Progress(prop::sample::Index, u64),
    Advance(u32),
}

fn nested() -> impl Strategy<Value = Nested> {
    prop_oneof![
        5 => (0..4_u8).prop_map(Nested::Begin),
        4 => any::<prop::sample::Index>().prop_map(Nested::End),
        2 => (0..4_u8).prop_map(Nested::Update),
        1 => Just(Nested::Idle),
        2 => (any::<prop::sample::Index>(), 0..9_u64).prop_map(|(of, done)| Nested::Progress(of, done)),
        2 => (0..60_000_u32).prop_map(Nested::Advance),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Register { who: usize, kind: u8 },
    Beat(usize),
    Task(usize, u8),
    Idle(usize),
    Tasks(usize, Vec<Nested>),
    Silence(usize, u16),
    Stop(usize),
    Fail(usize),
    Drop(usize),
    Advance(u32),
    Suspend(u32),
    Sweep,
    Purge,
    Supervised(Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Beat,
    Idle,
    Fail,
    Panic,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..4_usize;
    prop_oneof![
        3 => (who.clone(), any::<u8>()).prop_map(|(who, kind)| Step::Register { who, kind }),
        6 => who.clone().prop_map(Step::Beat),
        4 => (who.clone(), any::<u8>()).prop_map(|(who, run)| Step::Task(who, run)),
        3 => who.clone().prop_map(Step::Idle),
        4 => (who.clone(), proptest::collection::vec(nested(), 1..16))
            .prop_map(|(who, steps)| Step::Tasks(who, steps)),
        2 => (who.clone(), any::<u16>()).prop_map(|(who, seconds)| Step::Silence(who, seconds)),
        1 => who.clone().prop_map(Step::Stop),
        1 => who.clone().prop_map(Step::Fail),
        1 => who.prop_map(Step::Drop),
        8 => (0..150_000_u32).prop_map(Step::Advance),
        3 => (0..20_000_u32).prop_map(Step::Advance),
        3 => (0..10_000_000_u32).prop_map(Step::Suspend),
        1 => Just(Step::Sweep),
        1 => Just(Step::Purge),
        4 => prop_oneof![
            Just(Command::Beat),
            Just(Command::Beat),
            Just(Command::Idle),
            Just(Command::Fail),
            Just(Command::Panic)
        ]
        .prop_map(Step::Supervised),
    ]
}

const GROUPS: [&str; 2] = ["m1", "m2"];

fn build(world: &World, who: usize, kind: u8, incarnation: u32) -> (WorkerHeartbeat, Model) {
    let model = Model {
        stale_after: SECOND * [90, 30, 7][kind as usize % 3],
        stall_after: [None, Some(SECOND * 40), Some(SECOND * 5)][kind as usize / 3 % 3],
        task_deadline: [None, Some(SECOND * 50)][kind as usize / 72 % 2],
        grace: SECOND * [60, 20][kind as usize / 9 % 2],
        beats_only: kind / 18 % 2 == 1,
        silent: Charged::default(),
        silence: None,
        beaten: false,
        activity: Activity::Active,
        tasks: Vec::new(),
        ended: None,
        beats: 0,
        incarnation,
        group: GROUPS[kind as usize / 36 % 2],
    };
    let mut builder = world
        .worker("w")
        .id(format!("w-{who}"))
        .interval(SECOND)
        .stale_after(model.stale_after)
        .startup_grace(model.grace)
        .group(model.group);
    if let Some(task_deadline) = model.task_deadline {
        builder = builder.task_deadline(task_deadline);
    }
    if model.beats_only {
        // One limit at a time: unit tests check which of two is reported first.
        builder = builder.beats_only();
    } else if let Some(stall_after) = model.stall_after {
        builder = builder.stall_after(stall_after);
    }
    (builder.start().unwrap(), model)
}

/// A supervised worker that executes commands, and the model of it.
struct Puppet {
    worker: SupervisedWorker,
    commands: mpsc::Sender<Command>,
    done: mpsc::Receiver<()>,
    model: Model,
    /// The backoff, while the worker waits for its restart.
    waits: Option<Duration>,
}

const BACKOFF: Duration = Duration::from_secs(10);

impl Puppet {
    fn new(supervisor: &Supervisor, world: &World) -> Self {
        let (commands, receive) = mpsc::channel();
        let (acknowledge, done) = mpsc::channel();
        let builder = world.worker("puppet").id("puppet").group("puppets");
        let worker = supervisor.spawn(
            builder,
            move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
                for command in receive.iter() {
                    match command {
                        Command::Beat => hb.beat(),
                        Command::Idle => hb.mark_idle(),
                        Command::Fail => return Err("by command".into()),
                        Command::Panic => panic!("by command"),
                    }
                    acknowledge.send(())?;
                }
                Ok(())
            },
        );
        let model = Model {
            stale_after: SECOND * 90,
            stall_after: None,
            task_deadline: None,
            grace: SECOND * 90,
            beats_only: false,
            silent: Charged::default(),
            silence: None,
            beaten: false,
            activity: Activity::Active,
            tasks: Vec::new(),
            ended: None,
            beats: 0,
            incarnation: 1,
            group: "puppets",
        };
        Self {
            worker: worker.unwrap(),
            commands,
            done,
            model,
            waits: None,
        }
    }

    fn obey(&mut self, command: Command) {
        if self.waits.is_some() {
            return;
        }
        self.commands.send(command).unwrap();
        match command {
            Command::Beat => self.model.sign(),
            Command::Idle => self.model.be(Activity::Idle),
            Command::Fail | Command::Panic => {
                self.model.end(State::Dead);
                self.waits = Some(BACKOFF);
                // From the worker's end on, its thread is known to the clock until it sleeps again.
                let probe = self.worker.probe();
                eventually("dead", || probe.health().state() == State::Dead);
                return;
            }
        }
        self.done.recv().unwrap();
    }

    /// Time that `advance` moved.
    fn pass(&mut self, time: Duration) {
        match self.waits {
            Some(left) if left <= time => {
                self.waits = None;
                self.model.ended = None;
                self.model.beaten = false;
                self.model.beats = 0;
                self.model.activity = Activity::Active;
                self.model.incarnation += 1;
                self.model.silent = Charged::default();
                self.model.pass(time - left, time - left);
            }
            Some(left) => self.waits = Some(left - time),
            None => self.model.pass(time, time),
        }
    }

    /// Time that `suspend` moved: restarts follow the clock, so one that was due happens late.
    fn skip(&mut self, time: Duration, most: Duration) {
        match self.waits {
            Some(left) => self.waits = Some(left.saturating_sub(time)),
            None => self.model.pass(Duration::ZERO, most),
        }
    }
}

fn check(probe: &Probe, model: &Model, slack: Duration) -> Result<State, TestCaseError> {
    let state = probe.health().state();
    let allowed = model.allowed(slack);
    prop_assert!(
        allowed.contains(&state),
        "{} is {state}, allowed {allowed:?}: {model:?}",
        probe.id()
    );
    let snapshot = probe.snapshot();
    prop_assert_eq!(snapshot.health.state(), state);
    prop_assert_eq!(probe.is_recent(), state.is_recent());
    prop_assert_eq!(snapshot.beats, model.beats);
    prop_assert_eq!(snapshot.incarnation, model.incarnation);
    if model.ended.is_none() {
        let task = model.tasks.last();
        let run = task.map(|task| task.run.as_str());
        prop_assert_eq!(snapshot.run_id.as_deref(), run, "{:?}", model);
        let progress = task.and_then(|task| task.progress);
        prop_assert_eq!(snapshot.progress, progress, "{:?}", model);
        if let Some(age) = snapshot.task_age {
            prop_assert!(task.is_some(), "{:?} {:?}", age, model);
        }
    }
    if let Some(age) = snapshot.progress_age {
        prop_assert!(age <= model.silent.most, "age {age:?}: {model:?}");
        prop_assert!(age + slack >= model.silent.least, "age {age:?}: {model:?}");
    }
    if state.is_recent() && !model.beats_only {
        prop_assert!(snapshot.heartbeat_age.unwrap() <= slack * 2);
    }
    Ok(state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_interleaving_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let world = World::new();
        let restart = Restart::on_failure().max(u32::MAX).backoff(BACKOFF, BACKOFF).jitter(0.0);
        let supervisor = Supervisor::new(&world.registry).restart(restart);
        let mut puppet = Puppet::new(&supervisor, &world);
        let mut handles: BTreeMap<usize, WorkerHeartbeat> = BTreeMap::new();
        let mut models: BTreeMap<usize, Model> = BTreeMap::new();
        let mut marked: BTreeMap<usize, bool> = BTreeMap::new();

        for step in steps {
            // Before the pacemaker learns of a change, it may have ticked as seldom as this.
            let resolution = SECOND;
            match step {
                Step::Register { who, kind } => {
                    let living = models.get(&who).is_some_and(|model| model.ended.is_none());
                    if living {
                        let again = world.worker("w").id(format!("w-{who}")).start();
                        prop_assert!(again.is_err());
                    } else {
                        let incarnation = models.get(&who).map_or(1, |model| model.incarnation + 1);
                        let (hb, model) = build(&world, who, kind, incarnation);
                        handles.insert(who, hb);
                        models.insert(who, model);
                        marked.insert(who, false);
                    }
                }
                Step::Beat(who) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    hb.beat();
                    model.sign();
                },
                Step::Task(who, run) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    let activity = if run % 2 == 0 { Activity::Active } else { Activity::Processing };
                    hb.update_task(format!("run-{run}"), "task", activity);
                    model.update(format!("run-{run}"), activity);
                },
                Step::Tasks(who, steps) => if let (Some(hb), Some(_)) = (handles.get(&who), models.get(&who)) {
                    let mut guards: Vec<Option<TaskGuard<'_>>> = Vec::new();
                    for step in steps {
                        let model = models.get_mut(&who).unwrap();
                        match step {
                            Nested::Begin(run) => {
                                let run = format!("inner-{run}");
                                guards.push(Some(hb.begin_task(&run, "task")));
                                model.begin(guards.len() - 1, run);
                            }
                            Nested::End(of) => if !guards.is_empty() {
                                let place = of.index(guards.len());
                                if guards[place].take().is_some() {
                                    model.close(place);
                                }
                            },
                            Nested::Update(run) => {
                                let run = format!("inner-{run}");
                                hb.update_task(&run, "task", Activity::Active);
                                model.update(run, Activity::Active);
                            }
                            Nested::Idle => {
                                hb.mark_idle();
                                model.rest();
                            }
                            Nested::Progress(of, done) => if !guards.is_empty() {
                                let place = of.index(guards.len());
                                if let Some(guard) = &guards[place] {
                                    guard.progress(usize::try_from(done).unwrap(), 9);
                                    model.sign();
                                    let mut open = model.tasks.iter_mut();
                                    if let (Some(task), None) = (open.find(|task| task.guard == Some(place)), model.ended) {
                                        task.progress = Some((done, 9));
                                    }
                                }
                            },
                            Nested::Advance(millis) => {
                                let time = Duration::from_millis(millis.into());
                                world.time.advance(time);
                                for model in models.values_mut() {
                                    model.pass(time, time);
                                }
                                puppet.pass(time);
                            }
                        }
                        check(&hb.probe(), &models[&who], resolution)?;
                    }
                    for (place, guard) in guards.iter_mut().enumerate() {
                        if guard.take().is_some() {
                            models.get_mut(&who).unwrap().close(place);
                        }
                    }
                },
                Step::Idle(who) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    hb.mark_idle();
                    model.rest();
                },
                Step::Silence(who, seconds) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    // A silence is announced, half used up, and ended early.
                    let announced = SECOND * u32::from(seconds % 300);
                    let guard: SilenceGuard<'_> = hb.expect_silence(announced);
                    model.sign();
                    if model.ended.is_none() {
                        model.silence = Some(announced);
                    }
                    world.time.advance(announced / 2);
                    for model in models.values_mut() {
                        model.pass(announced / 2, announced / 2);
                    }
                    puppet.pass(announced / 2);
                    let model = models.get_mut(&who).unwrap();
                    check(&hb.probe(), model, resolution)?;
                    drop(guard);
                    model.silence = None;
                    model.sign();
                },
                Step::Stop(who) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    hb.stop();
                    model.end(State::Stopped);
                },
                Step::Fail(who) => if let (Some(hb), Some(model)) = (handles.get(&who), models.get_mut(&who)) {
                    hb.fail("by command");
                    model.end(State::Dead);
                },
                Step::Drop(who) => if let (Some(hb), Some(model)) = (handles.remove(&who), models.get_mut(&who)) {
                    drop(hb);
                    model.end(State::Stopped);
                },
                Step::Advance(millis) => {
                    let time = Duration::from_millis(millis.into());
                    world.time.advance(time);
                    for model in models.values_mut() {
                        model.pass(time, time);
                    }
                    puppet.pass(time);
                }
                Step::Suspend(millis) => {
                    let time = Duration::from_millis(millis.into());
                    world.time.suspend(time);
                    let most = time.min(2 * resolution);
                    for model in models.values_mut() {
                        model.pass(Duration::ZERO, most);
                    }
                    puppet.skip(time, most);
                    // What was due meanwhile happens now.
                    world.time.advance(Duration::ZERO);
                    puppet.pass(Duration::ZERO);
                }
                Step::Sweep => {
                    let report = world.registry.sweep();
                    prop_assert!(report.success);
                    for (who, model) in &models {
                        let id = format!("w-{who}");
                        let reported = report.marked_offline.contains(&id);
                        let known = marked.insert(*who, false).unwrap_or(false);
                        let state = world.registry.get(&id).unwrap().health().state();
                        if !known && model.ended == Some(State::Dead) {
                            prop_assert!(reported);
                        }
                        prop_assert!(!reported || state.is_offline());
                        marked.insert(*who, (reported || known) && state.is_offline());
                    }
                }
                Step::Purge => {
                    let gone: Vec<_> = models
                        .iter()
                        .filter(|(who, _)| !handles.contains_key(who))
                        .map(|(who, _)| *who)
                        .collect();
                    prop_assert_eq!(world.registry.purge(Duration::ZERO), gone.len());
                    for who in gone {
                        models.remove(&who);
                    }
                }
                Step::Supervised(command) => puppet.obey(command),
            }

            // Every worker is read, in every way.
            let mut states = Vec::new();
            for (who, model) in &models {
                let probe = world.registry.get(&format!("w-{who}")).expect("no worker vanishes");
                states.push((model.group, check(&probe, model, resolution)?));
            }
            let puppet_state = check(&puppet.worker.probe(), &puppet.model, resolution)?;
            states.push((puppet.model.group, puppet_state));

            let summary = world.registry.summary();
            prop_assert_eq!(summary.total, states.len());
            prop_assert_eq!(world.registry.workers().len(), states.len());
            for state in State::ALL {
                let count = states.iter().filter(|(_, read)| *read == state).count();
                prop_assert_eq!(summary.states.get(state), count, "{}", state);
            }
            prop_assert_eq!(
                summary.overdue_workers.len(),
                states.iter().filter(|(_, state)| *state == State::Overdue).count()
            );
            prop_assert_eq!(
                summary.dead_workers.len(),
                states.iter().filter(|(_, state)| state.is_offline()).count()
            );
            for group in GROUPS {
                let of = |offline: bool| states.iter().any(|(name, state)| {
                    *name == group && *state != State::Stopped && state.is_offline() == offline
                });
                let expected = if of(false) {
                    GroupState::Online
                } else if of(true) {
                    GroupState::Offline
                } else if states.iter().any(|(name, _)| *name == group) {
                    GroupState::Stopped
                } else {
                    GroupState::Unknown
                };
                prop_assert_eq!(world.registry.group(group), expected);
            }
        }
        drop(puppet.commands);
        if puppet.waits.is_none() {
            puppet.worker.join();
        }
        prop_assert!(supervisor.shutdown(crate::support::PATIENCE).is_clean());
    }
}
