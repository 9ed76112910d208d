// What the contact sheet asks for, and what it shows of the answer: pure, tested by tests/web/sheet/items.test.mjs.

const WIDGETS = ['folder', 'trigger_word', 'resolution', 'frame_buckets', 'num_repeats', 'validation_items', 'upscale',
  'extraction']
const SETTINGS = ['more_resolutions', 'prepend_trigger', 'caption_fallback', 'caption_dropout', 'shuffle_tags', 'masks',
  'alpha_color', 'model', 'condition', 'condition_dropout']

const MIB = 2 ** 20

const values = (node, names) => {
  const known = (node.widgets ?? []).filter(({ name }) => names.includes(name))
  return Object.fromEntries(known.map(({ name, value }) => [name, value]))
}

/** The values of the widgets of Load Dataset and of a connected Dataset Settings node, as the server takes them. */
export function configOf(node, settings = null) {
  return { ...values(node, WIDGETS), ...(settings && { settings: values(settings, SETTINGS) }) }
}

/** Names of the widgets whose value comes over a link, so that the page does not know it. */
export function linkedWidgets(node, settings = null) {
  const linked = (each) => (each?.inputs ?? []).filter((input, index) => input.widget && each.isInputConnected(index))
    .map((input) => input.widget.name)
  return [...linked(node), ...linked(settings)].filter((name) => [...WIDGETS, ...SETTINGS].includes(name))
}

/** One item for each sample that is trained on or held out, and one for each file that is left out. */
export function itemsOf(answer) {
  return (answer.files ?? []).flatMap((file) => {
    if (!file.used) return [{ key: file.file, file, sample: null }]
    return file.samples.map((sample, index) => ({ key: `${file.file}#${index}`, file, sample }))
  })
}

const KINDS = {
  all: () => true,
  used: ({ file }) => file.used && !file.held_out,
  left_out: ({ file }) => !file.used,
  held_out: ({ file }) => Boolean(file.held_out),
  without_caption: ({ file }) => file.text != null && !file.text.trim()
}

/** The kinds that the filter box offers. */
export const FILTERS = Object.keys(KINDS)

/** The items of a kind (one of FILTERS) whose name, captions or reason contain each word of the text. */
export function filtered(items, text, kind) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean)
  return items.filter((item) => {
    if (!KINDS[kind](item)) return false
    const { file } = item
    const all = [file.file, file.reason, file.text, ...(file.captions ?? [])].join('\n').toLowerCase()
    return words.every((word) => all.includes(word))
  })
}

/** '512x512' or '512x512x33'. */
export function bucketName({ width, height, frames }) {
  return `${width}x${height}${frames > 1 ? `x${frames}` : ''}`
}

/** The numbers of the line of totals; null where nothing can be used. */
export function totalsOf({ totals }) {
  if (!totals) return null
  const mib = totals.expected_cache_bytes / MIB
  return {
    used: totals.files_used,
    files: totals.files,
    held_out: totals.files_held_out,
    samples: totals.samples,
    buckets: totals.buckets.map(bucketName),
    cache: mib < 1024 ? `${mib < 10 ? mib.toFixed(1) : Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`
  }
}

const IDEOGRAPH = '[\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af]'
const LETTER = `(?!${IDEOGRAPH})[\\p{L}\\p{N}_]`

/** A caption in parts, [{text, isTrigger}]: the trigger word counts as a word of its own, as the server counts it. */
export function marked(caption, trigger) {
  const word = trigger.trim()
  if (!word || !caption) return [{ text: caption, isTrigger: false }]
  const before = new RegExp(`^${LETTER}`, 'u').test(word) ? `(?<!${LETTER})` : ''
  const after = new RegExp(`${LETTER}$`, 'u').test(word) ? `(?!${LETTER})` : ''
  const found = new RegExp(`${before}(${word.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')})${after}`, 'u')
  return caption.split(found).map((text, index) => ({ text, isTrigger: index % 2 === 1 })).filter(({ text }) => text)
}
