// Finding a text in the answer of ComfyUI's /i18n: pure, tested by tests/web/shared/message_text.test.mjs.

const SECTION = 'wantune'

function found(known, language, key) {
  const text = key.split('.').reduce((node, part) => node?.[part], known?.[language]?.[SECTION])
  return typeof text === 'string' ? text : undefined
}

/** The text of a key in a language, else in its main one (zh for zh-TW), else in English, else the key itself. */
export function lookUp(known, language, key, values = {}) {
  const text = [language, language.split('-')[0], 'en'].map((each) => found(known, each, key)).find((each) => each != null)
  return (text ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}
