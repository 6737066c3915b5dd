//! Programs of threads, forks, keys and values, and their expected results.
//!
//! The steps of a program run one after another, each in one of several threads, with keys of this library and, where they
//! can be compared, with pthread keys. A simple model gives the expected results. `model.rs` makes programs up. The fuzzer
//! writes them as bytes (`bytes.rs`), which `corpus.rs` runs again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::mem;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use libc::{EINVAL, pthread_key_t};
use tls_rs::ffi;

/// The most rounds of destructors, in this library and in libc.
const ROUNDS: u32 = 4;

/// How many live keys of a program have a pthread key to compare with, and how many of these are of kind `Create`.
const NATIVE_KEYS: usize = 100;
const NATIVE_CREATORS: usize = 15;

/// An error says what is wrong.
pub type Checked = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// What the destructor of a key does after it has logged its call.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// There is none.
    None,
    Nothing,
    /// Sets the value again, so many times.
    SetAgain(u32),
    /// Sets a value of another key, which only this destructor sets.
    SetOther,
    DeleteKey,
    /// Creates so many keys of kind `DeleteKey`, with values.
    Create(u32),
}

/// A thread or key is any number, and stands for one of those that exist.
#[derive(Clone, Debug)]
pub enum Step {
    Create { thread: usize, kind: Kind, count: usize },
    Delete { thread: usize, key: usize, count: usize },
    Set { thread: usize, key: usize, count: usize, null: bool },
    Get { thread: usize, key: usize, count: usize },
    UseNumber { thread: usize, number: usize },
    Start,
    End { thread: usize },
    Fork { thread: usize, steps: Vec<Step> },
}

/// Runs a program. The error says which result was wrong.
pub fn run(steps: &[Step]) -> Checked {
    let mut run = Run::new(vec![Worker::start(0)]);
    run.steps(steps)?;
    run.finish()
}

/// The library whose keys are used: this one, or libc.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Side {
    Ours,
    Native,
}

pub type Destructor = Option<unsafe extern "C-unwind" fn(*mut c_void)>;

impl Side {
    pub fn create(self, destructor: Destructor) -> Result<usize, c_int> {
        let (mut ours, mut native): (usize, pthread_key_t) = (0, 0);
        // SAFETY: both may be written to, and `destroy` only gets pointers to a `Value`. It does not unwind.
        let (error, key) = unsafe {
            match self {
                Side::Ours => (ffi::guac_thread_local_key_create(&mut ours, destructor), ours),
                Side::Native => {
                    let destructor: Option<unsafe extern "C" fn(*mut c_void)> = mem::transmute(destructor);
                    (libc::pthread_key_create(&mut native, destructor), native as usize)
                }
            }
        };
        if error == 0 { Ok(key) } else { Err(error) }
    }

    pub fn delete(self, key: usize) -> c_int {
        match self {
            Side::Ours => ffi::guac_thread_local_key_delete(key),
            // SAFETY: no native key is deleted twice.
            Side::Native => unsafe { libc::pthread_key_delete(key as pthread_key_t) },
        }
    }

    pub fn set(self, key: usize, value: *const c_void) -> c_int {
        match self {
            Side::Ours => ffi::guac_thread_local_setspecific(key, value),
            // SAFETY: no native key is used after it has been deleted.
            Side::Native => unsafe { libc::pthread_setspecific(key as pthread_key_t, value) },
        }
    }

    fn get(self, key: usize) -> *mut c_void {
        match self {
            Side::Ours => ffi::guac_thread_local_getspecific(key),
            // SAFETY: no native key is used after it has been deleted.
            Side::Native => unsafe { libc::pthread_getspecific(key as pthread_key_t) },
        }
    }
}

/// Which values were given to their destructors.
type Log = Arc<Mutex<Vec<(Side, usize)>>>;

/// The data that values point to.
struct Value {
    number: usize,
    side: Side,
    key: usize,
    kind: Kind,
    /// For `SetAgain`: how many more times.
    left: AtomicU32,
    /// For `SetOther`: the value to set.
    other: Option<Box<Value>>,
    /// For `Create`: values of the keys that were created.
    created: Mutex<Vec<Arc<Value>>>,
    log: Log,
}

/// The destructor of all keys.
unsafe extern "C-unwind" fn destroy(value: *mut c_void) {
    // SAFETY: values point to a `Value` that is alive while its program runs.
    let value = unsafe { &*value.cast::<Value>() };
    let side = value.side;
    value.log.lock().unwrap().push((side, value.number));
    match value.kind {
        Kind::None | Kind::Nothing => {}
        Kind::SetAgain(_) => {
            let left = value.left.load(Relaxed);
            if left > 0 {
                value.left.store(left - 1, Relaxed);
                assert_eq!(side.set(value.key, ptr::from_ref(value).cast()), 0);
            }
        }
        Kind::SetOther => {
            let other = value.other.as_ref().unwrap();
            assert_eq!(side.set(other.key, ptr::from_ref::<Value>(other).cast()), 0);
        }
        Kind::DeleteKey => assert_eq!(side.delete(value.key), 0),
        Kind::Create(count) => {
            for _ in 0..count {
                let key = side.create(Some(destroy)).unwrap();
                let created = Arc::new(Value {
                    number: value.number,
                    side,
                    key,
                    kind: Kind::DeleteKey,
                    left: AtomicU32::new(0),
                    other: None,
                    created: Mutex::default(),
                    log: value.log.clone(),
                });
                assert_eq!(side.set(key, Arc::as_ptr(&created).cast()), 0);
                value.created.lock().unwrap().push(created);
            }
        }
    }
}

/// A thread that runs jobs.
struct Worker {
    name: usize,
    /// `None` is the calling thread: a forked child has no other at first.
    thread: Option<(mpsc::Sender<Job>, JoinHandle<()>)>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Worker {
    fn start(name: usize) -> Worker {
        let (jobs, received) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || received.into_iter().for_each(|job| job()));
        Worker { name, thread: Some((jobs, thread)) }
    }

    /// Runs a job in the thread, and waits for its result.
    fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let Some((jobs, _)) = &self.thread else { return job() };
        let (answer, answered) = mpsc::channel();
        jobs.send(Box::new(move || answer.send(job()).unwrap())).unwrap();
        answered.recv().expect("the thread has not panicked")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((jobs, thread)) = self.thread.take() {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

/// A key of the model.
#[derive(Clone)]
struct Key {
    ours: usize,
    native: Option<usize>,
    kind: Kind,
    live: bool,
    /// For `SetOther`: the other key, ours and the native one.
    other: Option<(usize, Option<usize>)>,
}

impl Key {
    /// Whether `number` is one of this key's numbers in our library.
    fn is(&self, number: usize) -> bool {
        self.ours == number || self.other.is_some_and(|(ours, _)| ours == number)
    }

    /// The native key, which may be used as long as the key is alive.
    fn native(&self) -> Option<usize> {
        self.native.filter(|_| self.live)
    }
}

/// A running program. Its threads come first, and so end before the values are dropped that their destructors get.
struct Run {
    workers: Vec<Worker>,
    keys: Vec<Key>,
    /// All numbers that our library has issued.
    issued: BTreeSet<usize>,
    /// By thread and key: the number of the value.
    values: BTreeMap<(usize, usize), usize>,
    /// By number of the value: our value and the native one.
    boxes: Vec<Arc<[Value; 2]>>,
    names: usize,
    log: Log,
}

/// Some of the keys: `count` of them, from `first` on.
fn some(keys: usize, first: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count.min(keys)).map(move |i| (first % keys + i) % keys)
}

impl Run {
    fn new(workers: Vec<Worker>) -> Run {
        Run {
            keys: Vec::new(),
            issued: BTreeSet::new(),
            values: BTreeMap::new(),
            boxes: Vec::new(),
            names: workers.len(),
            workers,
            log: Log::default(),
        }
    }

    fn steps(&mut self, steps: &[Step]) -> Checked {
        steps.iter().try_for_each(|step| self.step(step))
    }

    /// The thread for which a number stands.
    fn worker(&mut self, number: usize) -> usize {
        if self.workers.is_empty() {
            self.start();
        }
        number % self.workers.len()
    }

    fn start(&mut self) {
        self.workers.push(Worker::start(self.names));
        self.names += 1;
    }

    fn step(&mut self, step: &Step) -> Checked {
        match *step {
            Step::Create { thread, kind, count } => {
                let worker = self.worker(thread);
                (0..count).try_for_each(|_| self.create(worker, kind))
            }
            Step::Delete { thread, key, count } => {
                let worker = self.worker(thread);
                some(self.keys.len(), key, count).try_for_each(|key| self.delete(worker, key))
            }
            Step::Set { thread, key, count, null } => {
                let worker = self.worker(thread);
                some(self.keys.len(), key, count).try_for_each(|key| self.set(worker, key, null))
            }
            Step::Get { thread, key, count } => {
                let worker = self.worker(thread);
                self.get(worker, some(self.keys.len(), key, count))
            }
            Step::UseNumber { thread, number } => {
                let worker = self.worker(thread);
                self.use_number(worker, number)
            }
            Step::Start => {
                if self.workers.len() < 6 {
                    self.start();
                }
                Ok(())
            }
            Step::End { thread } => {
                let worker = self.worker(thread);
                self.end(worker)
            }
            Step::Fork { thread, ref steps } => {
                let worker = self.worker(thread);
                self.fork(worker, steps.clone())
            }
        }
    }

    fn create(&mut self, worker: usize, kind: Kind) -> Checked {
        let destructor = move || if let Kind::None = kind { None } else { Some(destroy as _) };
        let is_creator = |kind: Kind| matches!(kind, Kind::Create(_));
        let natives = || self.keys.iter().filter(|key| key.native().is_some());
        let creators = natives().filter(|key| is_creator(key.kind)).count();
        let native = natives().count() < NATIVE_KEYS && !(is_creator(kind) && creators >= NATIVE_CREATORS);
        let key = self.workers[worker].run(move || {
            let both = |destructor: Destructor| -> Result<_, c_int> {
                let native = if native { Some(Side::Native.create(destructor)?) } else { None };
                Ok((Side::Ours.create(destructor)?, native))
            };
            let other = if let Kind::SetOther = kind { Some(both(Some(destroy))?) } else { None };
            let (ours, native) = both(destructor())?;
            Ok::<_, c_int>(Key { ours, native, kind, live: true, other })
        });
        let key = key.map_err(|error| format!("create: error {error}"))?;
        for ours in key.other.map(|(ours, _)| ours).into_iter().chain([key.ours]) {
            ensure!(self.issued.insert(ours), "{ours:#x} was issued before");
        }
        self.keys.push(key);
        let key = self.keys.len() - 1;
        (0..self.workers.len()).try_for_each(|worker| self.get(worker, [key]))
    }

    fn delete(&mut self, worker: usize, number: usize) -> Checked {
        let key = self.keys[number].clone();
        let (ours, native) = self.workers[worker].run(move || {
            if let Some((ours, native)) = key.other.filter(|_| key.live) {
                Side::Ours.delete(ours);
                native.map(|native| Side::Native.delete(native));
            }
            (Side::Ours.delete(key.ours), key.native().map(|native| Side::Native.delete(native)))
        });
        let expected = if self.keys[number].live { 0 } else { EINVAL };
        ensure!(ours == expected, "delete of key {number}: {ours}, not {expected}");
        ensure!(native.is_none_or(|native| native == expected), "pthreads delete key {number}: {native:?}");
        self.keys[number].live = false;
        self.values.retain(|(_, key), _| *key != number);
        Ok(())
    }

    fn set(&mut self, worker: usize, number: usize, null: bool) -> Checked {
        let key = self.keys[number].clone();
        let live = key.live;
        let values = if null { None } else { Some(self.new_values(&key)) };
        let pointers = values.clone();
        let (ours, native) = self.workers[worker].run(move || {
            let value = |side: usize| match &pointers {
                Some(values) => ptr::from_ref(&values[side]).cast(),
                None => ptr::null(),
            };
            let native = key.native().map(|native| Side::Native.set(native, value(1)));
            (Side::Ours.set(key.ours, value(0)), native)
        });
        let expected = if live { 0 } else { EINVAL };
        ensure!(ours == expected, "set of key {number}: {ours}, not {expected}");
        ensure!(native.is_none_or(|native| native == expected), "pthreads set key {number}: {native:?}");
        if live {
            let place = (self.workers[worker].name, number);
            match values {
                Some(values) => self.values.insert(place, values[0].number),
                None => self.values.remove(&place),
            };
        }
        self.get(worker, [number])
    }

    /// New values for a key: ours and the native one.
    fn new_values(&mut self, key: &Key) -> Arc<[Value; 2]> {
        let number = self.boxes.len();
        let log = &self.log;
        let value = |side, key, kind, other| Value {
            number,
            side,
            key,
            kind,
            left: AtomicU32::new(if let Kind::SetAgain(times) = kind { times } else { 0 }),
            other,
            created: Mutex::default(),
            log: log.clone(),
        };
        let other = |side, key| Box::new(value(side, key, Kind::Nothing, None));
        let ours = key.other.map(|(ours, _)| other(Side::Ours, ours));
        let native = key.other.and_then(|(_, native)| native).map(|native| other(Side::Native, native));
        let values = Arc::new([
            value(Side::Ours, key.ours, key.kind, ours),
            value(Side::Native, key.native.unwrap_or(0), key.kind, native),
        ]);
        self.boxes.push(values.clone());
        values
    }

    fn get(&self, worker: usize, numbers: impl IntoIterator<Item = usize>) -> Checked {
        let worker = &self.workers[worker];
        let numbers: Vec<_> = numbers.into_iter().collect();
        let keys: Vec<_> = numbers.iter().map(|number| self.keys[*number].clone()).collect();
        let answers = worker.run(move || {
            let ours = |key: &Key| Side::Ours.get(key.ours).addr();
            let native = |key: &Key| key.native().map(|native| Side::Native.get(native).addr());
            keys.iter().map(|key| (ours(key), native(key))).collect::<Vec<_>>()
        });
        for (number, (ours, native)) in numbers.into_iter().zip(answers) {
            let value = self.values.get(&(worker.name, number)).map(|value| &self.boxes[*value]);
            let expected = |side: usize| value.map_or(0, |values| ptr::from_ref(&values[side]).addr());
            ensure!(ours == expected(0), "thread {} reads {ours:#x} for key {number}", worker.name);
            ensure!(native.is_none_or(|native| native == expected(1)), "pthreads read {native:x?}");
        }
        Ok(())
    }

    /// Uses numbers that are no keys.
    fn use_number(&mut self, worker: usize, number: usize) -> Checked {
        // The given number, and those of live keys with another generation.
        let of_another_generation = |key: &Key| key.ours ^ 1 << (usize::BITS - 1 - number as u32 % 12);
        let live = self.keys.iter().filter(|key| key.live);
        let is_live = |number| self.keys.iter().any(|key| key.live && key.is(number));
        let numbers: Vec<_> =
            live.map(of_another_generation).chain([number]).filter(|number| !is_live(*number)).collect();
        let answers = self.workers[worker].run(move || {
            let (ours, dangling) = (Side::Ours, ptr::dangling());
            let answer =
                |number| (ours.get(number).is_null(), ours.set(number, dangling), ours.delete(number));
            numbers.into_iter().map(|number| (number, answer(number))).collect::<Vec<_>>()
        });
        for (number, answer) in answers {
            ensure!(answer == (true, EINVAL, EINVAL), "{number:#x} is no key: {answer:?}");
        }
        Ok(())
    }

    /// Ends a thread, and compares which destructors have run.
    fn end(&mut self, worker: usize) -> Checked {
        let Some((jobs, thread)) = self.workers[worker].thread.take() else { return Ok(()) };
        let name = self.workers.swap_remove(worker).name;
        drop(jobs);
        thread.join().map_err(|_| "a thread has panicked")?;

        let mut expected = Vec::new();
        let of_thread = |((thread, number), value): (&(usize, usize), &usize)| {
            (*thread == name).then_some((*number, *value))
        };
        let values: Vec<_> = self.values.iter().filter_map(of_thread).collect();
        self.values.retain(|(thread, _), _| *thread != name);
        for (number, value) in values {
            let key = &mut self.keys[number];
            let times = match key.kind {
                Kind::None => 0,
                Kind::Nothing => 1,
                Kind::SetAgain(times) => (times + 1).min(ROUNDS),
                Kind::SetOther => 2,
                Kind::DeleteKey => {
                    let had_native = key.native().is_some();
                    key.live = false;
                    self.values.retain(|(_, key), _| *key != number);
                    expected.push((Side::Ours, value));
                    expected.extend(had_native.then_some((Side::Native, value)));
                    continue;
                }
                Kind::Create(count) => 1 + count,
            };
            for _ in 0..times {
                expected.push((Side::Ours, value));
                expected.extend(key.native().map(|_| (Side::Native, value)));
            }
        }
        let mut ran = mem::take(&mut *self.log.lock().unwrap());
        ran.sort_unstable();
        expected.sort_unstable();
        let first = ran.iter().zip(&expected).take_while(|(ran, expected)| ran == expected).count();
        ensure!(
            ran == expected,
            "thread {name} ends with {} destructors, not {}; of the values, in order, {:?} is followed by {:?}, not {:?}",
            ran.len(),
            expected.len(),
            ran[..first].last(),
            ran.get(first),
            expected.get(first)
        );
        Ok(())
    }

    /// Forks in one of the threads. The child runs these steps.
    fn fork(&mut self, worker: usize, steps: Vec<Step>) -> Checked {
        let worker = &self.workers[worker];
        let name = worker.name;
        let mut child = Run {
            keys: self.keys.clone(),
            issued: self.issued.clone(),
            values: self.values.clone(),
            boxes: self.boxes.clone(),
            workers: vec![Worker { name, thread: None }],
            names: self.names,
            log: self.log.clone(),
        };
        child.values.retain(|(thread, _), _| *thread == name);
        worker.run(move || in_a_child(move || child.everything_is_there().and_then(|()| child.steps(&steps))))
    }

    fn everything_is_there(&self) -> Checked {
        (0..self.workers.len()).try_for_each(|worker| self.get(worker, 0..self.keys.len()))
    }

    /// Ends all threads and deletes all keys, so that the next program starts in the same state.
    fn finish(mut self) -> Checked {
        self.everything_is_there()?;
        while !self.workers.is_empty() {
            self.end(self.workers.len() - 1)?;
        }
        let worker = self.worker(0);
        for key in 0..self.keys.len() {
            if self.keys[key].live {
                self.delete(worker, key)?;
            }
        }
        self.end(worker)
    }
}

/// Forks, and runs a job in the child. A child that hangs is killed.
fn in_a_child(job: impl FnOnce() -> Checked) -> Checked {
    let (mut read, mut write) = UnixStream::pair().map_err(|error| format!("socketpair: {error}"))?;
    // SAFETY: glibc and musl keep malloc usable in the child. No other lock of the test is held, as its other threads wait
    // for jobs.
    match unsafe { libc::fork() } {
        -1 => Err("cannot fork".into()),
        0 => {
            // SAFETY: both may be called at any time. The fuzzer has installed a handler that would not end a child.
            unsafe {
                libc::signal(libc::SIGALRM, libc::SIG_DFL);
                libc::alarm(20);
            }
            let failure =
                catch_unwind(AssertUnwindSafe(job)).unwrap_or(Err("panic".into())).err().unwrap_or_default();
            let status = write.write_all(failure.as_bytes()).map_or(2, |()| 0);
            // SAFETY: it only ends the process.
            unsafe { libc::_exit(status) }
        }
        child => {
            drop(write);
            let mut failure = String::new();
            read.read_to_string(&mut failure).map_err(|error| format!("read: {error}"))?;
            let mut status = 0;
            // SAFETY: `status` may be written to.
            let ended = unsafe { libc::waitpid(child, &mut status, 0) };
            ensure!(ended == child && status == 0, "a child has ended with status {status:#x}");
            ensure!(failure.is_empty(), "in a child: {failure}");
            Ok(())
        }
    }
}
