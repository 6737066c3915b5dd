//! The budgets of calls in instructions and loads, and how these are counted, on x86_64. The test
//! `no_call_executes_more_than_its_budget` and `cargo xtask bench` use them.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// How many instructions a call executes, and how many loads from memory they make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub instructions: usize,
    pub loads: usize,
}

/// The budgets of calls as libguac makes them. They do not depend on the processor, and the time that a call takes follows
/// from them: on Intel's, a load costs half a cycle.
pub const BUDGETS: [(&str, Count); 6] = [
    ("get", Count { instructions: 15, loads: 8 }),
    ("set", Count { instructions: 16, loads: 7 }),
    ("slot", Count { instructions: 16, loads: 7 }),
    ("create", Count { instructions: 17, loads: 5 }),
    ("delete", Count { instructions: 34, loads: 6 }),
    ("first_value", Count { instructions: 126, loads: 36 }),
];

/// Counts what each call of `steps` executes. That is `tests/c/steps.c`, linked with a shared library as libguac is one.
pub fn count(steps: &Path) -> Result<HashMap<String, Count>, String> {
    let output = read(Command::new(steps).env("LD_BIND_NOW", "1"))?;
    let mut libraries = HashMap::new();
    let mut counts: HashMap<String, Count> = HashMap::new();
    for line in output.lines() {
        let [call, library, address] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("cannot understand what {} printed: {line}", steps.display()));
        };
        if !libraries.contains_key(library) {
            libraries.insert(library, disassemble(library)?);
        }
        let instruction = libraries[library].get(address);
        let instruction = instruction.ok_or_else(|| format!("{library} has no instruction at {address}"))?;
        let count = counts.entry(call.to_owned()).or_default();
        count.instructions += 1;
        count.loads += usize::from(is_load(instruction));
    }
    match BUDGETS.iter().find(|(call, _)| !counts.contains_key(*call)) {
        Some((call, _)) => Err(format!("{} has not made the call {call}", steps.display())),
        None => Ok(counts),
    }
}

/// The instructions of a library, by their addresses.
fn disassemble(library: &str) -> Result<HashMap<String, String>, String> {
    let listing = read(Command::new("objdump").args(["-d", "--no-show-raw-insn", "-Mintel", library]))?;
    let instructions = listing.lines().filter_map(|line| line.trim_start().split_once(":\t"));
    Ok(instructions.map(|(address, text)| (address.to_owned(), text.to_owned())).collect())
}

/// Whether an instruction reads memory. `mov` with memory as its first operand only writes there.
fn is_load(text: &str) -> bool {
    let text = text.split('#').next().unwrap_or_default().trim().trim_start_matches("lock ");
    let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
    let writes = || name.starts_with("mov") && operands.split(',').next().is_some_and(|to| to.contains('['));
    match name {
        "ret" | "pop" | "leave" => true,
        "lea" | "nop" => false,
        _ => operands.contains('[') && !writes(),
    }
}

/// What a command prints. It must succeed.
fn read(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn instructions_that_read_memory_are_told_from_others() {
    for text in [
        "mov    rax,QWORD PTR fs:[rax]",
        "ret",
        "cmp    QWORD PTR [rdx],rdi",
        "lock cmpxchg QWORD PTR [rcx],rsi",
    ] {
        assert!(is_load(text), "{text}");
    }
    for text in [
        "mov    QWORD PTR [rax+0x28],rsi",
        "lea    rax,[rip+0x2cf9]        # 5f80",
        "imul   rcx,rdi",
        "push   rbx",
    ] {
        assert!(!is_load(text), "{text}");
    }
}
