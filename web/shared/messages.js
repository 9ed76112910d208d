// Our texts in the page's language, from locales/<language>/main.json, which ComfyUI serves at /i18n.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { lookUp } from './message_text.js'

let known = {}

/** Resolves when t() can be used. */
export const ready = api
  .fetchApi('/i18n')
  .then((response) => response.json())
  .then((all) => (known = all))
  .catch(() => {})

/** The text of a key such as 'chart.loss', with {name} replaced; the key itself where there is none. */
export function t(key, values = {}) {
  return lookUp(known, app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en', key, values)
}
