// The server's sentences in the page's language, from locales/<language>/sentences.json.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { inOtherWords, translator } from './sentence_match.js'

const translators = new Map() // promises of functions, by language

const unchanged = (text) => text

/** Resolves to a function from a sentence of the server to the same in the page's language, as far as it is known. */
export function speaker() {
  const language = app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en'
  if (language === 'en') return Promise.resolve(unchanged)
  if (!translators.has(language)) {
    translators.set(language, api.fetchApi(`/wantune/sentences/${encodeURIComponent(language)}`)
      .then((response) => response.json())
      .then(translator)
      .catch(() => {
        translators.delete(language) // the server is away: asked again next time
        return unchanged
      }))
  }
  return translators.get(language)
}

/** An answer of the server with its sentences in the page's language. */
export async function said(answer) {
  const say = await speaker()
  return say === unchanged ? answer : inOtherWords(answer, say)
}
