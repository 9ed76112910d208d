// The server's sentences in another language: pure, tested by tests/web/shared/sentence_match.test.mjs.
//
// The server makes its sentences from templates such as "{name} is empty; export it again.", which stand with their
// translations in locales/<language>/sentences.json. A sentence is matched against the templates, what was filled in is
// translated the same way where it is a sentence itself, and filled into the translation.

const MOST_DEPTH = 6
const MOST_LETTERS = 20_000
const NUMBERS = new Set(['done', 'total', 'number', 'num_clips']) // names of what is always a whole number
const SPECIAL = /[.*+?^${}()|[\]\\/]/g

/** `translations`: {template: translation}. Returns a function from a text to the same in the other language. */
export function translator(translations) {
  const exact = new Map()
  const patterns = []
  for (const [template, translation] of Object.entries(translations)) {
    if (!translation) continue
    const parts = template.split(/\{(\w+)\}/)
    if (parts.length === 1) exact.set(template, translation)
    else patterns.push(patternOf(parts, translation))
  }
  // the most telling first: "{name} is empty; export it" before "{name} is {value}"
  patterns.sort((a, b) => b.letters - a.letters)
  const known = new Map()

  function whole(text, depth) {
    const same = exact.get(text)
    if (same !== undefined || depth > MOST_DEPTH) return same
    for (const { first, last, pattern, names, translation } of patterns) {
      if (!text.startsWith(first) || !text.endsWith(last)) continue
      const found = pattern.exec(text)
      if (!found) continue
      const values = Object.fromEntries(names.map((name, index) => [name, anyOf(found[index + 1], depth + 1)]))
      return translation.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place)
    }
    return undefined
  }

  /** Sentences that follow each other: the shortest beginning that is known, and the rest. */
  function sequence(text, depth) {
    for (const { index } of [...text.matchAll(/(?<=[.:]) |$/g)]) {
      const translated = whole(text.slice(0, index).trim(), depth)
      if (translated !== undefined) return translated + (index < text.length ? anyOf(text.slice(index + 1), depth) : '')
    }
    return text
  }

  function anyOf(text, depth) {
    if (depth > MOST_DEPTH || !/[A-Za-z]{2}/.test(text)) return text
    const key = `${depth} ${text}`
    if (!known.has(key)) known.set(key, sequence(text, depth))
    return known.get(key)
  }

  return (text) => {
    if (typeof text !== 'string' || text.length > MOST_LETTERS) return text
    const translated = text.split('\n').map((line) => {
      const [, before, words] = /^(\s*)(.*)$/s.exec(line)
      return before + anyOf(words, 0)
    }).join('\n')
    known.clear()
    return translated
  }
}

const SENTENCES = ['error', 'reason', 'notes', 'faults']
const HOLDERS = ['files', 'runs']

/** A copy of an answer in which `say` has translated what are sentences by their name, also those of files and runs. */
export function inOtherWords(answer, say) {
  if (!answer || typeof answer !== 'object') return answer
  const changed = { ...answer }
  for (const name of SENTENCES) {
    const value = answer[name]
    if (Array.isArray(value)) changed[name] = value.map(say)
    else if (typeof value === 'string') changed[name] = say(value)
  }
  for (const name of HOLDERS) {
    if (Array.isArray(answer[name])) changed[name] = answer[name].map((each) => inOtherWords(each, say))
  }
  return changed
}

function patternOf(parts, translation) {
  const literals = parts.filter((_, index) => index % 2 === 0)
  const names = parts.filter((_, index) => index % 2 === 1)
  const source = parts.map((part, index) => {
    if (index % 2) return NUMBERS.has(part) ? '(\\d+)' : '(.*?)'
    return part.replace(SPECIAL, '\\$&')
  }).join('')
  return {
    first: literals[0], last: literals.at(-1), pattern: new RegExp(`^${source}$`, 's'), translation, names,
    letters: literals.join('').replace(/[^A-Za-z]/g, '').length
  }
}
