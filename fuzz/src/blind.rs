//! The targets without libFuzzer, for machines without a C++ compiler: mutates the seeds at random,
//! without looking at what an input reached.
//!
//! `blind list` | `blind run TARGET SECONDS [SEED]` | `blind once TARGET FILE`

use std::{
    env, fs, panic,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clawmatrix_fuzz::{TARGETS, Target};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => TARGETS
            .iter()
            .for_each(|target| println!("{}", target.name)),
        ["once", name, file] => (target(name).run)(&fs::read(file).expect("the input can be read")),
        ["run", name, seconds, rest @ ..] => {
            let seconds: u64 = seconds.parse().expect("seconds");
            let seed = rest
                .first()
                .map_or_else(now_ns, |text| text.parse().expect("a seed"));
            return run(target(name), Duration::from_secs(seconds), seed);
        }
        _ => {
            eprintln!("usage: blind list | run TARGET SECONDS [SEED] | once TARGET FILE");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn target(name: &str) -> &'static Target {
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("no target `{name}`"))
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_nanos() as u64)
}

fn run(target: &Target, time: Duration, seed: u64) -> ExitCode {
    let seeds = (target.seeds)();
    let mut random = Random(seed | 1);
    let until = SystemTime::now() + time;
    let mut runs = 0_u64;
    while SystemTime::now() < until {
        for _ in 0..1000 {
            let input = mutate(&seeds, &mut random);
            if panic::catch_unwind(|| (target.run)(&input)).is_err() {
                let file = env::temp_dir().join(format!("crash-{}-{seed}-{runs}", target.name));
                let _ = fs::write(&file, &input);
                eprintln!("{}: panic, input kept in {}", target.name, file.display());
                return ExitCode::FAILURE;
            }
            runs += 1;
        }
    }
    println!("{}: {runs} runs, seed {seed}", target.name);
    ExitCode::SUCCESS
}

/// xorshift64: good enough to shuffle bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = if seeds.is_empty() || random.below(50) == 0 {
        Vec::new()
    } else {
        seeds[random.below(seeds.len())].clone()
    };
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.insert(at, random.next() as u8),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            5 => {
                let piece = b"\"{}[]:,\\u0\xff\x00-19e".as_slice();
                let from = random.below(piece.len());
                bytes.splice(at..at, piece[from..].iter().copied());
            }
            6 if !seeds.is_empty() => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
            _ => bytes.push(random.next() as u8),
        }
    }
    bytes
}
