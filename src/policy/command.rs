//! Commands: taking them apart without a shell, which programs run others, and which characters
//! arguments may not hold (protocol 8.3). Pure.

use icu_normalizer::ComposingNormalizerBorrowed;

/// Programs that run what they are told to: shells, interpreters, wrappers, remote shells.
const RUNNERS: &str = "\
ash at awk bash batch bun busybox bwrap chroot chrt command cpulimit crontab csh dash deno \
doas docker ed elixir emacs env erl eval ex exec expect fakeroot fish flock gawk gdb ghci \
guile ionice irb java jshell julia ksh kubectl ld.so lldb lua luajit m4 make mawk mksh nawk \
nc ncat netcat nice node nodejs nohup npm npx nsenter nvim octave osascript parallel perl \
php pkexec podman powershell pwsh pypy python r rbash rlwrap rscript rsh ruby run-parts \
runuser scp screen script sed setarch setpriv setsid sftp sh slogin socat sqlite3 ssh \
start-stop-daemon stdbuf strace su sudo systemd-run taskset tclsh tcsh telnet time timeout \
tmux toybox unshare vi view vim watch wish xargs xterm yash zsh";

/// Programs no option of which runs another program or writes a file.
const SAFE: &str = "\
basename cat cksum cmp cut df dirname du echo expr false free groups head id ls md5sum nproc \
printf pwd readlink realpath seq sha1sum sha256sum sha512sum sleep stat tail test tr true \
uname uptime wc whoami";

/// Options by which `find` runs or removes things.
const FIND_ACTIONS: &str = "\
-delete -exec -execdir -fls -fprint -fprint0 -fprintf -ok -okdir";

/// Whether a program may run without `dangerous: true`: it is none that runs others, and with
/// arguments nobody looked at (`any`) only one that is known to be harmless.
pub(super) fn plain(path: &str, called: &str, args: &[String], any: bool) -> bool {
    let real = name_of(path);
    if runner(real) || runner(name_of(called)) {
        return false;
    }
    if real == "find" && args.iter().any(|arg| listed(FIND_ACTIONS, arg)) {
        return false;
    }
    !any || listed(SAFE, real)
}

fn listed(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|listed| listed == word)
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `python3.12`, `perl5`, `ld-linux-x86-64.so.2` are what their plain names are.
fn runner(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let bare = lower.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    listed(RUNNERS, &lower) || listed(RUNNERS, bare) || lower.starts_with("ld-linux")
}

/// The words of a command, when no shell is needed to find them.
#[must_use]
pub fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '$' | '`' => return None,
                        '\\' => match chars.next()? {
                            c @ ('$' | '`' | '"' | '\\') => word.push(c),
                            '\n' => return None,
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next()? {
                '\n' => return None,
                c => word.get_or_insert_default().push(c),
            },
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | ']' | '{'
            | '}' | '~' | '#' | '!' | '\n' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.take());
    let first = words.first()?;
    (!first.is_empty() && !assignment(first) && !listed(BUILTINS, first)).then_some(words)
}

/// Words a shell acts on itself, and would act on differently than a program of that name.
const BUILTINS: &str = "\
. : alias bg bind break builtin caller case cd command compgen complete continue declare \
dirs disown do done elif else enable esac eval exec exit export fc fg fi for function \
getopts hash help history if in jobs let local logout mapfile popd pushd read readarray \
readonly return select set shift shopt source suspend then times trap type typeset ulimit \
umask unalias unset until wait while";

fn assignment(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else {
        return false;
    };
    let name = name.strip_suffix('+').unwrap_or(name);
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What an argument holds that hides its meaning from a person: control characters, characters
/// without width or that turn the direction of text, more than one way to write a letter.
#[must_use]
pub fn hidden(text: &str) -> Option<&'static str> {
    if text.contains('\0') {
        return Some("a NUL character");
    }
    if text.is_ascii() {
        return text
            .bytes()
            .any(|b| b.is_ascii_control())
            .then_some("a control character");
    }
    if text.chars().any(char::is_control) {
        return Some("a control character");
    }
    if text.chars().any(invisible) {
        return Some("an invisible character, or one that turns the direction of text");
    }
    if !ComposingNormalizerBorrowed::new_nfc().is_normalized(text) {
        return Some("letters that are not in composed form (NFC)");
    }
    None
}

/// Spaces that are no space, characters without width, direction marks, tags.
const fn invisible(c: char) -> bool {
    matches!(c,
        '\u{00a0}' | '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{1680}'
        | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180e}' | '\u{2000}'..='\u{200f}'
        | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Whether a caller may never set this variable: it changes which code programs load or run.
#[must_use]
pub fn forbidden_variable(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let valid = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    !valid
        || [
            "LD_", "DYLD_", "PYTHON", "GIT_", "BASH_", "PERL", "RUBY", "NODE_",
        ]
        .iter()
        .any(|prefix| upper.starts_with(prefix))
        || upper.ends_with("_PRELOAD")
        || matches!(
            &*upper,
            "PATH" | "IFS" | "ENV" | "SHELL" | "PS4" | "PROMPT_COMMAND" | "JAVA_TOOL_OPTIONS"
        )
}
