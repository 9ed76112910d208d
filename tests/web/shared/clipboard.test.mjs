import assert from 'node:assert/strict'
import test from 'node:test'
import { copyText } from '../../../web/shared/clipboard.js'

/** A page whose clipboard ends up as {text}; `command` stands for what document.execCommand('copy') answers. */
function page({ writeText, command }) {
  const found = { text: null, left: 0, focused: false }
  let field
  const define = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true })
  define('navigator', { clipboard: writeText && { writeText: (text) => writeText(found, text) } })
  define('document', {
    activeElement: { focus: () => { found.focused = true } },
    body: { append: () => { found.left += 1 } },
    createElement: () => (field = { style: {}, addEventListener() {}, select() {}, remove: () => { found.left -= 1 } }),
    execCommand: () => command(found, field.value)
  })
  return found
}

const never = () => { throw new Error('not asked') }

test('the clipboard of a secure page is used', async () => {
  const found = page({ writeText: async (found, text) => { found.text = text }, command: never })
  assert.equal(await copyText('a run'), true)
  assert.equal(found.text, 'a run')
})

const copies = (found, text) => {
  found.text = text
  return true
}

for (const [name, writeText] of [['on plain http', undefined], ['where it is forbidden', async () => { throw new Error('no') }]]) {
  test(`${name} it is copied by selecting it, and nothing is left in the page`, async () => {
    const found = page({ writeText, command: copies })
    assert.equal(await copyText('a run'), true)
    assert.deepEqual(found, { text: 'a run', left: 0, focused: true })
  })
}

for (const [name, command] of [['refuses', () => false], ['cannot', never]]) {
  test(`where the browser ${name}, that is told`, async () => {
    const found = page({ command })
    assert.equal(await copyText('a run'), false)
    assert.equal(found.left, 0)
  })
}
