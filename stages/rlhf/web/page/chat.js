// The page: questions, answers as they are decoded, votes. Text from models is only ever textContent.
const words = {
  ko: {
    welcome: "무엇이 궁금하세요?",
    alone: "질문마다 따로 답합니다. 앞에서 한 이야기는 기억하지 않습니다.",
    question: "질문을 입력하세요", send: "묻기", theme: "밝게 또는 어둡게",
    pair: "비교", first: "첫째 모델", second: "둘째 모델", blind: "이름을 가리고 비교",
    token: "접속 토큰", enter: "들어가기",
    base: "기본 모델", sft: "SFT", ppo: "PPO",
    better: "어느 답이 나은가요?", same: "두 답이 같습니다.",
    a: (a) => `${a} 쪽이 낫다`, b: (b) => `${b} 쪽이 낫다`, tie: "비슷하다", both_bad: "둘 다 나쁘다",
    saved: "투표를 저장했습니다.", sample: "다르게 답해 보기", sampled: (n) => `표본 ${n}`,
    tokens: (n) => `${n} 토큰`, cut: "끝맺지 못함", reward: "보상", judge: "심판",
    sd: "SFT 답의 표준편차를 단위로 한 점수", waiting: (n) => `앞에 질문 ${n}개`,
    failed: "답하지 못했습니다. 서버 기록을 보세요.", closed: "서버가 끝났습니다.", cutoff: "연결이 끊겼습니다.",
    full: "질문이 밀려 있습니다. 잠시 뒤에 다시 물어 주세요.", unknown: "너무 오래된 질문이라 투표할 수 없습니다.",
    voted: "이미 투표했습니다.", too_large: "질문이 너무 깁니다.", vote_file: "투표 파일에 쓸 수 없습니다:",
    unreachable: "서버에 닿지 않습니다.",
    evidence: (n) => `근거 ${n}개`, none: "질문에 맞는 근거를 찾지 못해 질문만 보고 답합니다.",
    passage: (n) => `근거 ${n}`, declines: "근거에 답이 없다고 보고 답하지 않았습니다.",
    uncited: "근거를 밝히지 않은 답입니다.", missing: (n) => `${n}번 근거는 없습니다.`,
    unstated: "근거에 없는 답입니다. 모델이 기억하거나 지어낸 말일 수 있습니다.",
  },
  en: {
    welcome: "What would you like to know?",
    alone: "Every question stands alone: earlier ones are not remembered.",
    question: "Type a question in Korean", send: "Ask", theme: "Light or dark",
    pair: "Compare", first: "First model", second: "Second model", blind: "Hide the names",
    token: "Access token", enter: "Enter",
    base: "base", sft: "SFT", ppo: "PPO",
    better: "Which answer is better?", same: "The two answers are the same.",
    a: (a) => `${a} is better`, b: (b) => `${b} is better`, tie: "About equal", both_bad: "Both are bad",
    saved: "Vote saved.", sample: "Another answer", sampled: (n) => `sample ${n}`,
    tokens: (n) => `${n} tokens`, cut: "cut off", reward: "reward", judge: "judge",
    sd: "in standard deviations of SFT's answers", waiting: (n) => `${n} before this one`,
    failed: "No answer: see the server's log.", closed: "The server has ended.", cutoff: "The connection broke.",
    full: "Too many questions are waiting; ask again in a moment.", unknown: "That question is too old to vote on.",
    voted: "You have voted already.", too_large: "The question is too long.", vote_file: "The vote file cannot be written:",
    unreachable: "The server does not respond.",
    evidence: (n) => (n === 1 ? "1 passage" : `${n} passages`), none: "No passage was found; the answers are from the question alone.",
    passage: (n) => `passage ${n}`, declines: "Declined: no answer found in the passages.",
    uncited: "Cites no passage.", missing: (n) => `There is no passage ${n}.`,
    unstated: "No passage states this: the model may remember it, or have made it up.",
  },
};
const language = navigator.language.startsWith("ko") ? "ko" : "en";
const t = words[language];
const $ = (id) => document.getElementById(id);
const CITATION = /\s?\[(\d{1,3})\]/g; // as stages/rlhf/chat.py reads one
const NARROW = "(max-width: 760px)"; // as chat.css
let about = { models: [], votes: null };
let token = takeToken();

document.documentElement.lang = language;
for (const one of document.querySelectorAll("[data-i18n]")) one.textContent = t[one.dataset.i18n];
for (const one of document.querySelectorAll("[data-i18n-label]")) one.ariaLabel = t[one.dataset.i18nLabel];
for (const one of document.querySelectorAll("[data-i18n-placeholder]")) one.placeholder = t[one.dataset.i18nPlaceholder];

function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem("token", found);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

function make(tag, properties = {}, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}

// --- requests

async function call(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let found;
  try {
    found = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error(t.unreachable);
  }
  if (found.ok) return found;
  const told = await found.json().catch(() => ({}));
  if (found.status === 401) {
    await askForToken();
    return call(path, body);
  }
  const text = t[told.error];
  throw new Error(told.error === "vote_file" ? `${text} ${told.message}` : text ?? told.message ?? `HTTP ${found.status}`);
}

function askForToken() {
  return new Promise((done) => {
    $("gate").showModal();
    $("gate").onclose = () => {
      token = $("token").value;
      sessionStorage.setItem("token", token);
      done();
    };
  });
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

// --- a question and its answers

class Turn {
  constructor(question, seed) {
    this.question = question;
    this.seed = seed;
    this.pair = [$("first").value, $("second").value];
    this.blind = $("blind").checked && this.votes;
    if (this.blind && Math.random() < 0.5) this.pair.reverse();
    this.answers = {};
    this.cards = {};
    this.passages = [];
    this.grid = make("div", { className: "answers" });
    this.below = make("div");
    this.node = make("section", { className: "turn" }, make("h2", { textContent: question }), this.grid, this.below);
    const order = this.blind ? this.pair : about.models.map((one) => one.name);
    this.grid.style.setProperty("--columns", order.length);
    for (const name of order) this.card(name);
  }

  get votes() {
    return about.votes && this.pair[0] && this.pair[1] && this.pair[0] !== this.pair[1];
  }

  label(name) {
    return this.blind && this.pair.includes(name) ? "AB"[this.pair.indexOf(name)] : t[name] ?? name;
  }

  card(name) {
    const title = make("b", { textContent: this.label(name) });
    const note = make("span", { textContent: this.seed === null ? "" : t.sampled(this.seed) });
    const text = make("p", { className: "text", lang: "ko" });
    const grounds = make("p", { className: "grounds" });
    const facts = make("p", { className: "facts" });
    const node = make("article", { className: "answer busy" }, make("h3", {}, title, note), text, grounds, facts);
    node.dataset.model = this.blind ? this.label(name) : name;
    const cited = (one) => Number(one.dataset.passage) || this.answers[name]?.cited;
    for (const kind of ["mouseover", "focusin"]) node.addEventListener(kind, ({ target }) => this.mark(cited(target) ?? this.focused));
    for (const kind of ["mouseleave", "focusout"]) node.addEventListener(kind, () => this.mark(this.focused));
    this.cards[name] = { node, title, note, text, grounds, facts };
    this.grid.append(node);
  }

  showPassages(texts) {
    if (!texts.length) {
      if (about.rag) this.grid.before(make("p", { className: "evidence none", textContent: t.none }));
      return;
    }
    this.passages = texts.map((text, index) => {
      const by = make("span", { className: "by" });
      const number = make("b", { textContent: `[${index + 1}]` });
      const node = make("li", { id: `${this.id}-${index + 1}` }, number, make("span", { textContent: text, lang: "ko" }), by);
      return { node, by };
    });
    const list = make("ol", {}, ...this.passages.map((one) => one.node));
    this.evidence = make("details", { className: "evidence", ariaLive: "off", open: !matchMedia(NARROW).matches });
    this.evidence.append(make("summary", { textContent: t.evidence(texts.length) }), list);
    this.grid.before(this.evidence);
  }

  mark(number) {
    this.passages.forEach(({ node }, index) => node.classList.toggle("marked", index + 1 === number));
  }

  get focused() {
    return Number(this.grid.querySelector(":focus")?.dataset.passage);
  }

  showCitations(event) {
    const { text, grounds } = this.cards[event.model];
    text.replaceChildren(...this.withMarkers(event.answer));
    grounds.textContent = this.remark(event);
    grounds.classList.toggle("cut", !event.declines);
    this.passages.forEach(({ node, by }, index) => {
      const names = Object.keys(this.cards).filter((name) => this.answers[name]?.cited === index + 1);
      by.textContent = names.map((name) => this.label(name)).join(" · ");
      node.classList.toggle("cited", names.length > 0);
    });
  }

  remark({ cited, declines, stated }) {
    if (declines) return t.declines;
    if (stated === false) return t.unstated;
    if (cited === null) return this.passages.length ? t.uncited : "";
    return this.passages[cited - 1] ? "" : t.missing(cited);
  }

  withMarkers(answer) {
    const parts = [];
    let end = 0;
    for (const found of answer.matchAll(CITATION)) {
      if (!this.passages[found[1] - 1]) continue;
      parts.push(answer.slice(end, found.index), this.marker(Number(found[1])));
      end = found.index + found[0].length;
    }
    return [...parts, answer.slice(end)];
  }

  marker(number) {
    const { node } = this.passages[number - 1];
    const button = make("button", { type: "button", className: "cite", textContent: `[${number}]`, ariaLabel: t.passage(number) });
    button.dataset.passage = number;
    button.setAttribute("aria-describedby", node.id);
    button.onclick = () => {
      this.evidence.open = true;
      node.scrollIntoView({ block: "nearest" });
    };
    return button;
  }

  take(event) {
    if ("waiting" in event) {
      this.id = event.ask;
      this.showPassages(event.passages);
      if (event.waiting) for (const one of Object.values(this.cards)) one.facts.textContent = t.waiting(event.waiting);
      return;
    }
    if (event.done) return this.finish();
    if (event.error) return this.fail(t[event.error] ?? event.error);
    const card = this.cards[event.model];
    if ("answer" in event) this.answers[event.model] = event;
    if (!card) return; // hidden until the vote
    if ("piece" in event) {
      card.facts.textContent = "";
      card.text.textContent += event.piece;
    } else this.settle(event);
  }

  settle(event) {
    const card = this.cards[event.model];
    card.node.classList.remove("busy");
    card.text.textContent = event.answer;
    if ("cited" in event) this.showCitations(event);
    if (!this.blind) this.showFacts(event);
  }

  showFacts(event) {
    const { facts } = this.cards[event.model];
    const parts = [t.tokens(event.tokens)];
    if (event.reward !== null) {
      parts.push(`${t.reward} ${signed(event.reward)}`, `${t.judge} ${signed(event.judge)}`);
      facts.title = t.sd;
    }
    facts.textContent = parts.join(" · ");
    if (!event.ended) facts.append(" · ", make("span", { className: "cut", textContent: t.cut }));
  }

  finish() {
    this.over = true;
    if (this.votes) this.offerVote();
    const again = make("button", { type: "button", textContent: t.sample });
    again.onclick = () => ask(this.question, (this.seed ?? -1) + 1, this.node);
    this.below.append(make("div", { className: "more" }, again));
  }

  fail(message) {
    this.over = true;
    for (const { node } of Object.values(this.cards)) node.classList.remove("busy");
    this.below.append(make("p", { className: "cut", textContent: message }));
  }

  offerVote() {
    const [a, b] = this.pair;
    const bar = make("div", { className: "vote" });
    if (spoken(this.answers[a]) === spoken(this.answers[b])) {
      bar.append(make("span", { textContent: t.same }));
      this.reveal();
    } else {
      const status = make("span", { textContent: t.better });
      bar.append(status);
      for (const vote of ["a", "b", "tie", "both_bad"]) {
        const name = { a, b }[vote];
        const text = name ? t[vote](this.label(name)) : t[vote];
        const button = make("button", { type: "button", textContent: text });
        button.dataset.vote = vote;
        button.onclick = () => this.vote(vote, bar, status);
        bar.append(button);
      }
    }
    this.below.append(bar);
  }

  async vote(vote, bar, status) {
    const buttons = [...bar.querySelectorAll("button")];
    for (const one of buttons) one.disabled = true;
    const [a, b] = this.pair;
    try {
      await call("/api/vote", { ask: this.id, a, b, vote, blind: Boolean(this.blind) });
    } catch (fault) {
      status.textContent = fault.message;
      for (const one of buttons) one.disabled = false;
      return;
    }
    status.textContent = t.saved;
    bar.querySelector(`[data-vote=${vote}]`).classList.add("given");
    const chosen = { a, b }[vote];
    if (chosen) this.cards[chosen].node.classList.add("chosen");
    this.reveal();
  }

  reveal() {
    if (!this.blind) return;
    const letters = Object.fromEntries(this.pair.map((name) => [name, this.label(name)]));
    this.blind = false;
    this.grid.style.setProperty("--columns", about.models.length);
    for (const { name } of about.models) {
      if (!this.cards[name]) this.card(name);
      this.cards[name].title.textContent = letters[name] ? `${letters[name]} = ${this.label(name)}` : this.label(name);
      this.cards[name].node.dataset.model = name;
      if (this.answers[name]) this.settle(this.answers[name]);
    }
  }
}

const spoken = (event) => ("cited" in event ? event.answer.replace(CITATION, "").trim() : event.answer);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

async function ask(question, seed, after = null) {
  notice("");
  $("welcome").hidden = true;
  const turn = new Turn(question, seed);
  after ? after.after(turn.node) : $("log").append(turn.node);
  turn.node.scrollIntoView({ block: "start", behavior: "smooth" });
  try {
    for await (const event of lines(await call("/api/ask", { question, seed }))) {
      turn.take(event);
      if (!after) $("log").scrollTop = $("log").scrollHeight;
    }
    if (!turn.over) turn.fail(t.cutoff);
  } catch (fault) {
    turn.fail(fault.message);
  }
}

function notice(text) {
  $("notice").textContent = text;
}

// --- the page's own controls

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  grow();
  ask(question, null);
};
$("question").onkeydown = (event) => {
  // Enter sends, but not the Enter that ends a syllable of an input method
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
$("question").oninput = grow;
function grow() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight}px`;
}
$("theme").onclick = () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  setTheme(dark ? "light" : "dark");
};
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").ariaPressed = String(theme === "dark");
  localStorage.setItem("theme", theme);
}

async function start() {
  if (localStorage.getItem("theme")) setTheme(localStorage.getItem("theme"));
  about = await (await call("/api/about")).json();
  $("about").textContent = about.models
    .map(({ name, made_at }) => (t[name] ?? name) + (made_at ? ` ${made_at}` : ""))
    .join(" · ") + ` (${about.base_model})`;
  $("question").maxLength = about.most_characters;
  for (const select of [$("first"), $("second")])
    for (const { name } of about.models) select.append(make("option", { value: name, textContent: t[name] ?? name }));
  const names = about.models.map((one) => one.name);
  $("first").value = names.at(-2) ?? names[0];
  $("second").value = names.at(-1);
  if (!about.votes || names.length < 2) for (const id of ["pair", "blindly"]) $(id).hidden = true;
  for (const text of about.examples) {
    const button = make("button", { type: "button", textContent: text });
    button.onclick = () => ask(text, null);
    $("examples").append(button);
  }
  $("question").focus();
}
start().catch((fault) => notice(fault.message));
