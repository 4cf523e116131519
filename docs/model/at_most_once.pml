/*
 * At most one execution (docs/protocol.md 7.1), as an exhaustive finite model for Spin.
 *
 * One origin O, one destination D, one relay R on every path between them, and one request of a kind
 * that must not run twice (a handoff; exec, write or any other tool). O may repeat it, as another rid,
 * only when it believes that the first attempt never began.
 *
 * R is hostile: it delivers any frame it ever carried at any time, any number of times, in any order,
 * or never. It cannot make or open one (that part is handshake.vp). The replay window of 4.3 is left
 * out, and keys of a session are held as long as its process lives; both only make R stronger. Either
 * node may restart, and either side may have begun a session, R having held back the handshake's third
 * message as long as its time limit lets it, so that the clocks of 7.1 differ by that much.
 *
 * Time is counted in ticks; what happens within one tick happens in every order. With the real times
 * (-DREAL) a tick is 10 s.
 *
 * What must hold is asserted where it could break, in `executes` and `settle`. A mutation (-DBREAK_…)
 * takes one rule away; docs/model/run checks that Spin then finds a failure, so that the model is known
 * to be able to fail. A witness (-DWITNESS=n) asserts that a wanted outcome cannot be reached, and must
 * fail too, so that the model is known not to be empty.
 */

#ifdef REAL
#define STALE    6    /* 60 s: `at` and D's own clock may differ by this much (7.1 c) */
#define HELD     1    /* 10 s: how much later than one side the other may begin the session (3.5) */
#define FENCE   12    /* 120 s: a refused, fenced or cancelled rid is remembered this long */
#define MEMORY  60    /* 600 s: one that ran, from its end (7.1 b) */
#define BELIEVE 54    /* 540 s: O takes a refusal or `unknown` for "never began" this long after sending */
#define HORIZON 70
#else                 /* the same order of sizes, in as few ticks as it takes */
#define STALE    1
#define HELD     1
#define FENCE    3
#define MEMORY   3
#define BELIEVE  2
#define HORIZON  7
#endif

#ifdef BREAK_SHORT_FENCE
#undef FENCE
#define FENCE STALE
#endif
#ifdef BREAK_SHORT_MEMORY
#undef MEMORY
#define MEMORY STALE
#endif

#ifndef SESSIONS
#define SESSIONS 2
#endif
#define RIDS 2        /* the request and its repetition */

/* What D remembers of a rid. */
#define ABSENT  0
#define RUNNING 1
#define ENDED   2     /* it ran */
#define BARRED  3     /* refused, fenced or cancelled: it never runs from now on */

/* What O told its caller. */
#define OPEN           0
#define COMPLETED      1
#define NOT_DISPATCHED 2
#define UNKNOWN        3
#define GONE           4  /* O restarted: there is no caller any more */

byte now;

/* Sessions. A bit of a mask is one session. */
byte begun;                 /* how many there ever were */
byte lag[SESSIONS];         /* HELD + D's beginning of it - O's */
byte keys_o;                /* sessions of the O that now runs */
byte keys_d;                /* sessions in which D can open frames */
byte same_boot;             /* sessions with the D that now runs, as it said in its `boot` */

/* O */
bit  attempt;
bit  asking;                /* no answer came: O asks by `query` */
byte sent_at[RIDS] = 255;
byte carrier[RIDS];         /* the one session that carries it */
byte outcome[RIDS];
bit  restarted_o, restarted_d;
bit  ghost;                 /* a session begun by the O that is no more may still reach D */

/* D */
byte fate[RIDS];
byte until[RIDS];
byte executed[RIDS];        /* by all processes of D together: the counter file of T82 */

/* Sealed frames that R holds. */
bit query[RIDS], cancel[RIDS];                      /* to D */
bit accepted, end, refused, unknown;                /* to O, about the attempt it waits for */

#ifdef BREAK_ANY_SESSION
byte origin_of[SESSIONS];   /* when O began it */
byte at_session[RIDS];      /* the session whose clock `at` was read from */
#define shift(r) (origin_of[carrier[r]] - origin_of[at_session[r]])
#else
#define shift(r) 0
#endif

#define bit_of(s)  (1 << (s))
#define live       (outcome[attempt] == OPEN && sent_at[attempt] != 255)

/* D's elapsed time minus `at`, plus HELD so that it is no negative number. */
#define late(r)    (now - sent_at[r] + 2 * HELD - lag[carrier[r]] - shift(r))

byte s, r;                  /* scratch; always 0 between steps */

inline any_rid()     { if :: r = 0 :: r = 1 fi }
#if SESSIONS == 1
inline any_session() { s = 0 }
#elif SESSIONS == 2
inline any_session() { if :: s = 0 :: s = 1 fi }
#else
inline any_session() { if :: s = 0 :: s = 1 :: s = 2 fi }
#endif
inline done()        { s = 0; r = 0 }

/* D's answer matters while O waits for one. */
inline tell(word)    { word = word || (live && r == attempt) }
inline hush()        { accepted = 0; end = 0; refused = 0; unknown = 0; asking = 0 }

inline bar()         { fate[r] = BARRED; until[r] = now + FENCE }
inline finish()      { fate[r] = ENDED; until[r] = now + MEMORY }
inline wipe(rid)     { fate[rid] = ABSENT; until[rid] = 0 }

/* The handler starts: whatever it does may have happened from here on. */
inline executes() {
  executed[r]++;
  fate[r] = RUNNING; until[r] = 0;
  assert(executed[r] == 1);                       /* at most once */
  assert(outcome[r] != NOT_DISPATCHED);           /* `not_dispatched` stays true */
  assert(executed[0] + executed[1] <= 1)          /* a repetition is no second execution */
}

inline settle(what) {
  assert(outcome[attempt] == OPEN);               /* exactly one outcome */
  assert(what != COMPLETED || executed[attempt] == 1);
  assert(what != NOT_DISPATCHED || executed[attempt] == 0);
#if WITNESS == 1
  assert(what != COMPLETED || attempt != 0);      /* it just works */
#elif WITNESS == 2
  assert(what != COMPLETED || attempt != 1);      /* the repetition works */
#elif WITNESS == 3
  assert(what != NOT_DISPATCHED || asking);       /* learnt from a refusal */
#elif WITNESS == 4
  assert(what != NOT_DISPATCHED || !asking);      /* learnt from `query` */
#elif WITNESS == 5
  assert(what != UNKNOWN || executed[attempt] == 0);
#elif WITNESS == 6
  assert(what != UNKNOWN || executed[attempt] == 1);
#endif
  outcome[attempt] = what;
  hush()
}

/* D opens one copy of the request. */
inline request_arrives() {
  if
#ifdef BREAK_NO_TABLE
  :: fate[r] == RUNNING || fate[r] == ENDED -> executes()
#else
  :: fate[r] == RUNNING || fate[r] == ENDED -> skip     /* a duplicate */
#endif
  :: fate[r] == BARRED -> tell(refused)
  :: fate[r] == ABSENT ->
     if
#ifndef BREAK_NO_STALE
     :: late(r) > STALE + HELD || late(r) + STALE < HELD ->
        if :: bar(); tell(refused) :: skip fi
#endif
     :: else ->
        if
        :: executes(); tell(accepted)
        :: bar(); tell(refused)                  /* overloaded, draining, too large */
        :: skip                                   /* no room to remember a refusal: no answer */
        fi
     fi
  fi
}

inline query_arrives() {
  if
  :: fate[r] == RUNNING || fate[r] == ENDED -> tell(accepted)
  :: fate[r] == BARRED -> tell(unknown)
#ifdef BREAK_NO_FENCE
  :: fate[r] == ABSENT -> tell(unknown)
#else
  :: fate[r] == ABSENT -> bar(); tell(unknown)
#endif
  :: fate[r] == ABSENT -> skip                    /* no room to remember it: no answer */
  fi
}

inline cancel_arrives() {
  if
  :: fate[r] == RUNNING -> finish()
  :: fate[r] == ABSENT -> bar()
  :: else -> skip
  fi
}

/* What D's table forgets when the clock moves on. */
inline forget(rid) {
  if
  :: (fate[rid] == ENDED || fate[rid] == BARRED) && until[rid] <= now -> wipe(rid)
  :: else -> skip
  fi
}

init {
  do
  /* --- the clock, from the first request on. O gives up in time what nothing was heard of, but its
   * timers stand still while its machine is suspended: nothing here leans on them */
  :: atomic { now < HORIZON && (sent_at[0] != 255 || outcome[0] != OPEN) ->
       now++; forget(0); forget(1) }

  /* --- a session, held back or not */
  :: atomic { begun < SESSIONS ->
       s = begun; begun++;
       if :: lag[s] = 0 :: lag[s] = HELD :: lag[s] = 2 * HELD fi;
#ifdef BREAK_ANY_SESSION
       origin_of[s] = now;
#endif
       /* D meets another boot of O: the old one's table and sessions go (4.5). */
       if
       :: restarted_o && keys_o == 0 ->
          wipe(0); wipe(1);
#ifndef BREAK_OLD_BOOT
          keys_d = 0
#endif
       :: else -> skip
       fi;
       keys_o = keys_o | bit_of(s);
       keys_d = keys_d | bit_of(s);
       same_boot = same_boot | bit_of(s);
       done() }

  /* --- restarts */
  :: atomic { !restarted_d ->
       restarted_d = 1;
#ifndef BREAK_KEYS_ON_DISK
       keys_d = 0;
       query[0] = 0; query[1] = 0; cancel[0] = 0; cancel[1] = 0;
#endif
       same_boot = 0; wipe(0); wipe(1) }
  :: atomic { !restarted_o ->
       restarted_o = 1; keys_o = 0; ghost = 1;
       if
       :: outcome[attempt] == OPEN -> outcome[attempt] = GONE; hush()
       :: else -> skip
       fi }
  :: atomic { ghost -> ghost = 0; keys_d = 0; wipe(0); wipe(1) }

  /* --- O */
  :: atomic { outcome[attempt] == OPEN && sent_at[attempt] == 255 && keys_o != 0 ->
       any_session();
       if
       :: keys_o & bit_of(s) -> sent_at[attempt] = now; carrier[attempt] = s;
#ifdef BREAK_ANY_SESSION
          at_session[attempt] = s
#endif
       :: else -> skip
       fi;
       done() }
#ifdef BREAK_ANY_SESSION
  /* The same frame, `at` and all, sealed in another session. */
  :: atomic { live -> any_session();
       if :: keys_o & bit_of(s) -> carrier[attempt] = s :: else -> skip fi;
       done() }
#endif
  /* No answer in time, the session lost, the client gone: a `cancel` in any case. */
  :: atomic { live && !asking -> asking = 1; cancel[attempt] = 1 }
  /* Asked only at the process that had the request: another one has forgotten everything. */
#ifdef BREAK_ANY_BOOT
  :: atomic { live && asking && (keys_o & same_boot) ->
#else
  :: atomic { live && asking && (keys_o & same_boot) && (same_boot & bit_of(carrier[attempt])) ->
#endif
       query[attempt] = 1 }
  :: atomic { live && asking -> settle(UNKNOWN) }
  :: atomic { live && end -> settle(COMPLETED) }
  /* "It never began" is believed soon after the request was sent, on a clock that counts suspend:
   * later D may have forgotten what it did. */
  :: atomic { live && !asking && refused ->
       if
#ifndef BREAK_BELIEVE_REFUSED
       :: now > sent_at[attempt] + BELIEVE -> settle(UNKNOWN)
#endif
       :: else -> settle(NOT_DISPATCHED)
       fi }
  :: atomic { live && asking && unknown ->
       if
#ifndef BREAK_BELIEVE_LATE
       :: now > sent_at[attempt] + BELIEVE -> settle(UNKNOWN)
#endif
       :: else -> settle(NOT_DISPATCHED)
       fi }
  /* The request goes again, as another one, over whichever path there is. */
#ifdef BREAK_RETRY_UNKNOWN
  :: atomic { attempt == 0 && (outcome[0] == NOT_DISPATCHED || outcome[0] == UNKNOWN) -> attempt = 1 }
#else
  :: atomic { attempt == 0 && outcome[0] == NOT_DISPATCHED -> attempt = 1 }
#endif

  /* --- R hands D a frame */
  :: atomic { any_rid();
       if :: sent_at[r] != 255 && (keys_d & bit_of(carrier[r])) -> request_arrives() :: else -> skip fi;
       done() }
  :: atomic { any_rid(); if :: query[r] && keys_d != 0 -> query_arrives() :: else -> skip fi; done() }
  :: atomic { any_rid(); if :: cancel[r] && keys_d != 0 -> cancel_arrives() :: else -> skip fi; done() }

  /* --- D */
  :: atomic { any_rid(); if :: fate[r] == RUNNING -> finish() :: else -> skip fi; done() }
  :: atomic { any_rid();
       if :: fate[r] == ENDED && keys_d != 0 -> tell(end) :: else -> skip fi;
       done() }
#ifdef BREAK_EVICT
  /* Thousands of other requests push it out of the table. */
  :: atomic { any_rid(); if :: fate[r] == BARRED -> wipe(r) :: else -> skip fi; done() }
#endif

  :: now == HORIZON && !live -> break
  od
}
