// Requests to our routes on ComfyUI's server (nodes/page/).

import { api } from '../../../scripts/api.js'
import { said } from './sentences.js'

async function ask(path, options = {}) {
  const headers = { 'WanTune-Client': api.clientId ?? api.initialClientId ?? '', ...options.headers }
  const response = await api.fetchApi(`/wantune/${path}`, { cache: 'no-store', ...options, headers })
  if (response.ok) return response
  const answer = await said(await response.json().catch(() => ({})))
  throw Object.assign(new Error(answer.error ?? `${response.status} ${response.statusText}`), { status: response.status })
}

const withQuery = (path, query) => {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value != null)).toString()
  return text ? `${path}?${text}` : path
}

/** The path of our route about a run, or about something of it. */
export const pathOfRun = (run, what = '') => `runs/${encodeURIComponent(run)}${what && `/${what}`}`

/** JSON of GET /wantune/<path>, its sentences in the page's language; throws an Error whose message is the server's
 * sentence. `signal` aborts it. */
export async function get(path, query = {}, signal = undefined) {
  return said(await (await ask(withQuery(path, query), { signal })).json())
}

/** JSON of POST /wantune/<path>; throws as get() does. */
export async function post(path, body = {}) {
  const headers = { 'Content-Type': 'application/json' }
  return (await ask(path, { method: 'POST', headers, body: JSON.stringify(body) })).json()
}

/** A picture or video as a blob: URL for src, to be revoked: with --multi-user a plain URL would not tell the user. */
export async function media(path, query = {}, signal = undefined) {
  const response = await ask(withQuery(path, query), { signal, cache: 'default' })
  return URL.createObjectURL(await response.blob())
}

/** A video as a URL for src, to be revoked; a blob: URL only if needed, as --disable-api-nodes has a CSP against it. */
export async function video(path, query = {}, signal = undefined) {
  return api.user ? media(path, query, signal) : api.apiURL(`/wantune/${withQuery(path, query)}`)
}

/** A file that a node has saved, {filename, subfolder, type}, as a URL of ComfyUI's own route. */
export function savedFile({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}
