import assert from 'node:assert/strict'
import test from 'node:test'
import { advancedOf, isNeeded } from '../../../web/settings/hidden.js'

const eps = { name: 'eps', value: 1e-8, options: { advanced: true } }
const defaults = new Map([['eps', 1e-8]])

/** A node with these inputs, of which some are connected. */
const node = (inputs, connected = []) => ({ inputs, isInputConnected: (index) => connected.includes(index) })
const input = (name) => ({ name, widget: { name } })

test('advanced is what the description marks', () => {
  assert.deepEqual(advancedOf([eps, { name: 'schedule', value: 'constant', options: {} }, { name: 'panel' }]), [eps])
  assert.deepEqual(advancedOf(undefined), [])
})

test('at their defaults and without links they stay hidden', () => {
  assert.equal(isNeeded([eps], defaults, {}), false)
  assert.equal(isNeeded([eps], defaults, node([input('eps'), { name: 'model' }], [1])), false)
})

test('another value or a link makes them seen', () => {
  assert.equal(isNeeded([{ ...eps, value: 1e-6 }], defaults, node([])), true)
  assert.equal(isNeeded([eps], defaults, node([input('eps')], [0])), true)
})
